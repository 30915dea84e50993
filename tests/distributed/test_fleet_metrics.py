"""The collector as a Ray actor: processes that die, a collector that dies."""

import os
import signal
import time
import urllib.request
from collections.abc import Iterator

import pytest
import ray

from recurra.errors import ClusterError
from recurra.telemetry.fleet import FleetReporter, fleet_actor, fleet_exposition, fleet_exposition_async
from recurra.telemetry.metrics import Metrics

pytestmark = pytest.mark.ray


@ray.remote(num_cpus=0)
class Worker:
    """A process that counts and reports, like a replica or a training worker."""

    def __init__(self) -> None:
        self._metrics = Metrics(model="m")
        self._counter = self._metrics.counter("recurra_prompt_tokens_total")
        self._metrics.gauge("recurra_slots_used").set(1)
        self._reporter = FleetReporter(self._metrics, "serve")

    def count(self, amount: int) -> int:
        self._counter.inc(amount)
        return os.getpid()

    def close(self) -> bool:
        return self._reporter.close()

    async def exposition(self) -> str:
        return await fleet_exposition_async()


@pytest.fixture(scope="module")
def driver(ray_cluster) -> Iterator[None]:
    ray.init(address=ray_cluster.address, namespace="test", log_to_driver=False, logging_level="ERROR")
    yield
    ray.kill(fleet_actor())
    ray.shutdown()


@pytest.fixture
def workers(driver):
    made = [Worker.remote() for _ in range(2)]
    ray.get([worker.count.remote(0) for worker in made])
    yield made
    for worker in made:
        ray.kill(worker)


def value(text: str, start: str) -> float:
    """Sum of the values of all lines that begin with `start`."""
    return sum(float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line.startswith(start))


def counted(text: str) -> float:
    return value(text, 'recurra_prompt_tokens_total{model="m"}')


def eventually(condition, timeout_s: float = 120.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.1)


def test_every_read_is_exact_at_once(workers):
    """500 answered requests are 500 in the next read, from any process, without waiting for a push."""
    fleet_actor()
    eventually(lambda: value(fleet_exposition(), 'recurra_slots_used{model="m"') == 2)
    start = counted(fleet_exposition())
    for round_number in range(1, 6):
        ray.get([worker.count.remote(50) for worker in workers])
        text = fleet_exposition() if round_number % 2 else ray.get(workers[0].exposition.remote())
        assert counted(text) - start == 100 * round_number


def test_the_counts_of_a_killed_process_stay(workers):
    """A replica that is killed leaves what it had reported; its gauges go once it is silent."""
    start = counted(fleet_exposition())
    pids = ray.get([worker.count.remote(7) for worker in workers])
    assert counted(fleet_exposition()) - start == 14
    os.kill(pids[0], signal.SIGKILL)
    ray.get(workers[1].count.remote(1))

    assert counted(fleet_exposition()) - start == 15


def test_a_process_that_closes_loses_nothing(workers):
    """The last second before a replica is scaled away counts like any other."""
    start = counted(fleet_exposition())
    ray.get(workers[0].count.remote(5))

    assert ray.get(workers[0].close.remote()) is True
    assert counted(fleet_exposition()) - start == 5


def test_live_processes_are_back_after_the_collector_died(workers):
    """The actor's node may be lost: Ray starts it elsewhere, and nobody has to be told."""
    ray.get([worker.count.remote(3) for worker in workers])
    before = value(fleet_exposition(), "recurra_fleet_start_time_seconds")
    ray.kill(fleet_actor(), no_restart=False)

    def is_back() -> bool:
        try:
            text = fleet_exposition()
        except ClusterError:
            return False
        return value(text, "recurra_fleet_start_time_seconds") > before and counted(text) == 6

    eventually(is_back)


def test_the_exporter_is_one_scrape_target_for_all(driver, workers):
    """Training has no HTTP server: Prometheus reads its metrics here."""
    url = ray.get(fleet_actor().export.remote("127.0.0.1:0"))
    start = counted(fleet_exposition())
    ray.get([worker.count.remote(2) for worker in workers])

    def complete() -> bool:
        with urllib.request.urlopen(url) as answer:
            return counted(answer.read().decode()) - start == 4

    eventually(complete)


def test_without_a_cluster_the_error_says_what_to_do(monkeypatch):
    """Otherwise Ray would quietly start a cluster of its own."""
    monkeypatch.setattr(ray, "is_initialized", lambda: False)

    with pytest.raises(ClusterError, match=r"ray\.init"):
        fleet_actor()
