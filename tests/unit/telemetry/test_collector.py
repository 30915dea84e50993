import asyncio
import urllib.request

import pytest

from recurra.errors import ConfigError
from recurra.telemetry.collector import REFUSED, CollectorOptions, FleetCollector, parse_address
from recurra.telemetry.metrics import Metrics

QUICK = CollectorOptions(poll_s=0.01, fresh_s=0.5)
NAME = "recurra_prompt_tokens_total"


class HandClock:
    def __init__(self):
        self.now_s = 0.0

    def __call__(self):
        return self.now_s


def source_of(count):
    metrics = Metrics(model="m")
    metrics.counter(NAME).inc(count)
    metrics.gauge("recurra_slots_used").set(count)
    return metrics


def total(fleet):
    return fleet.values()[NAME].series[("m",)][0]


def sources(fleet):
    return {labels[0]: numbers[0] for labels, numbers in fleet.values()["recurra_fleet_sources"].series.items()}


async def report(fleet, name, metrics):
    """What a reporter's thread does, until it is cancelled."""
    sequence = seen_round = 0
    while True:
        sequence += 1
        seen_round = await fleet.push(name, metrics.snapshot(), sequence, seen_round)


def test_a_reader_sees_what_was_counted_before_it_asked():
    """A client counts its own answered requests in /metrics, whichever replica answered them."""

    async def scenario():
        fleet = FleetCollector(options=CollectorOptions(poll_s=60.0, fresh_s=30.0))
        replicas = [source_of(0) for _ in range(3)]
        tasks = [asyncio.create_task(report(fleet, f"r{i}", metrics)) for i, metrics in enumerate(replicas)]
        await asyncio.sleep(0)
        seen = []
        for round_number in range(1, 6):
            for metrics in replicas:
                metrics.counter(NAME).inc()
            seen.append((await fleet.fresh())[NAME].series[("m",)][0] - 3 * round_number)
        for task in tasks:
            task.cancel()
        return seen

    assert asyncio.run(scenario()) == [0.0] * 5


def test_readers_that_come_together_share_rounds():
    """A hundred scrapes at once must not ask every replica a hundred times."""

    async def scenario():
        fleet = FleetCollector(options=CollectorOptions(poll_s=60.0, fresh_s=30.0))
        task = asyncio.create_task(report(fleet, "a", source_of(1)))
        await asyncio.sleep(0)
        await asyncio.gather(*(fleet.collect() for _ in range(100)))
        task.cancel()
        return fleet._round

    assert asyncio.run(scenario()) <= 2


def test_a_source_that_hangs_delays_a_reader_no_longer_than_agreed():
    """One stuck replica must not make the fleet's metrics time out."""

    async def scenario():
        fleet = FleetCollector(options=CollectorOptions(poll_s=60.0, fresh_s=0.01))
        stuck = asyncio.create_task(fleet.push("stuck", source_of(1).snapshot(), 1, 0))
        await asyncio.sleep(0)
        async with asyncio.timeout(60):
            await fleet.fresh()
        stuck.cancel()
        return total(fleet)

    assert asyncio.run(scenario()) == 1.0


def test_a_closed_source_stays_in_the_sums_and_leaves_the_gauges():
    """Counters of the fleet never go down when a replica is scaled away."""

    async def scenario():
        fleet = FleetCollector(options=QUICK)
        await fleet.push("a", source_of(5).snapshot(), 1, 0)
        await fleet.push("a", source_of(7).snapshot(), 2, 0, True)
        await fleet.push("b", source_of(1).snapshot(), 1, 0)
        return fleet

    fleet = asyncio.run(scenario())
    assert total(fleet) == 8.0
    assert fleet.values()["recurra_slots_used"].series == {("m", "b"): (1.0,)}


def test_a_push_that_comes_late_changes_nothing():
    """Two pushes of one process may overtake each other when it closes."""

    async def scenario():
        fleet = FleetCollector(options=QUICK)
        await fleet.push("a", source_of(9).snapshot(), 5, 0)
        await fleet.push("a", source_of(3).snapshot(), 4, 0)
        before = total(fleet)
        await fleet.push("a", source_of(9).snapshot(), 6, 0, True)
        answer = await fleet.push("a", source_of(9).snapshot(), 7, 0)
        return before, answer, total(fleet)

    assert asyncio.run(scenario()) == (9.0, REFUSED, 9.0)


def test_a_silent_source_loses_its_gauges_and_comes_back():
    """A process that is only slow for a while is not counted twice."""
    clock = HandClock()

    async def scenario():
        fleet = FleetCollector(options=CollectorOptions(poll_s=0.01, silent_s=10), clock=clock)
        await fleet.push("a", source_of(5).snapshot(), 1, 0)
        clock.now_s = 11.0
        silent = (total(fleet), sources(fleet), "recurra_slots_used" in fleet.values())
        await fleet.push("a", source_of(6).snapshot(), 2, 0)
        return silent, (total(fleet), sources(fleet), "recurra_slots_used" in fleet.values())

    silent, back = asyncio.run(scenario())
    assert silent == (5.0, {"live": 0.0, "silent": 1.0}, False)
    assert back == (6.0, {"live": 1.0, "silent": 0.0}, True)


def test_a_source_that_was_silent_for_long_is_closed_for_good():
    """Its memory is given back; its counts stay."""
    clock = HandClock()

    async def scenario():
        fleet = FleetCollector(options=CollectorOptions(poll_s=0.01, forget_s=100), clock=clock)
        await fleet.push("a", source_of(5).snapshot(), 1, 0)
        clock.now_s = 101.0
        fleet.values()
        return fleet, await fleet.push("a", source_of(6).snapshot(), 2, 0)

    fleet, answer = asyncio.run(scenario())
    assert (answer, total(fleet), sources(fleet)) == (REFUSED, 5.0, {"live": 0.0, "silent": 0.0})


def test_the_exporter_answers_on_the_address_it_was_given():
    """One scrape target for training, which has no HTTP server of its own."""

    async def scenario():
        fleet = FleetCollector(options=QUICK)
        url = await fleet.export("127.0.0.1:0")
        empty = await asyncio.to_thread(lambda: urllib.request.urlopen(url).read().decode())
        task = asyncio.create_task(report(fleet, "a", source_of(4)))
        await asyncio.sleep(0)
        text = await asyncio.to_thread(lambda: urllib.request.urlopen(url).read().decode())
        task.cancel()
        return url, await fleet.export(), empty, text

    url, again, empty, text = asyncio.run(scenario())
    assert url.startswith("http://127.0.0.1:") and again == url
    assert 'recurra_fleet_sources{state="live"} 0.0' in empty
    assert f'{NAME}{{model="m"}} 4.0' in text


@pytest.mark.parametrize("address", ["9464", "host:", ":9464", "host:http", "host:70000"])
def test_an_address_that_is_none_is_refused(address):
    """It comes from an environment variable that a person typed."""
    with pytest.raises(ConfigError, match=r"such as 127\.0\.0\.1:9464"):
        parse_address(address)


def test_a_port_that_is_taken_is_named_and_ends_nothing(capsys):
    """Two clusters on one machine with the same setting: the second goes on counting."""

    async def scenario():
        url = await FleetCollector(options=QUICK).export()
        taken = url.removeprefix("http://").removesuffix("/metrics")
        with pytest.raises(ConfigError, match=f"cannot listen on {taken}"):
            await FleetCollector(options=QUICK).export(taken)
        second = FleetCollector(taken, QUICK)
        await second.push("a", source_of(4).snapshot(), 1, 0)
        return total(second)

    assert asyncio.run(scenario()) == 4.0
    assert "metrics_exporter_failed" in capsys.readouterr().err
