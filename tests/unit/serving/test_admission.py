"""Too many requests are refused once it is clear that they are no burst, and only they."""

import concurrent.futures
import threading
import time

import httpx
import pytest
from tests.unit.serving.conftest import Clock, classifier_service

from recurra.config.haproxy import BUSY_HEADER
from recurra.serving.admission import CALM_S, Crowd


def crowd_of(count: int, clock: Clock, *, least: int = 10, max_wait_s: float = 0.5) -> Crowd:
    crowd = Crowd(least, max_wait_s, clock)
    for _ in range(count):
        assert crowd.enter()
    return crowd


def answer(crowd: Crowd, clock: Clock, per_second: float, seconds: float, refill: bool = False) -> int:
    """Answer at a pace, the next client coming for each answer if they are refilled; how many were refused."""
    refused = 0
    for _ in range(round(per_second * seconds)):
        clock.now += 1 / per_second
        crowd.leave(answered=True)
        refused += refill and not crowd.enter()
    return refused


def test_a_burst_is_taken_whole():
    """It is over before anybody has waited for long."""
    crowd = crowd_of(500, Clock())

    assert crowd.count == 500


def test_a_crowd_that_stays_is_refused_down_to_what_is_answered_in_time():
    """Little's law: at 100 answers a second, 50 are here if nobody waits for more than half a second."""
    clock = Clock()
    crowd = crowd_of(200, clock)
    refused = answer(crowd, clock, per_second=100, seconds=5.0, refill=True)

    assert crowd.limit == pytest.approx(50, abs=1)
    assert crowd.count == pytest.approx(50, abs=2)
    assert refused == pytest.approx(150, abs=2)


def test_what_can_be_computed_and_as_many_more_always_have_room():
    """A slow model answers few in the time, but its batches must not go short."""
    clock = Clock()
    crowd = crowd_of(30, clock)
    answer(crowd, clock, per_second=2, seconds=30.0, refill=True)

    assert crowd.limit == 10
    assert crowd.count == 10


def test_a_crowded_replica_is_busy_until_there_is_room_again():
    """So that HAProxy refuses for it; a burst alone is no reason, and refusing early must not look like calm."""
    clock = Clock()
    crowd = crowd_of(200, clock)
    during_burst = crowd.is_busy()
    answer(crowd, clock, per_second=100, seconds=2.0, refill=True)
    busy = []
    for _ in range(300):  # what leaves is replaced, and nobody is refused here
        clock.now += 0.01
        crowd.leave(answered=True)
        busy.append(crowd.is_busy())
        assert crowd.enter()
    for _ in range(20):
        crowd.leave(answered=True)

    assert not during_burst
    assert all(busy)
    assert not crowd.is_busy()


def test_the_limit_follows_the_pace():
    """A replica whose neighbour went away, or whose requests became longer, answers fewer: so fewer wait."""
    clock = Clock()
    crowd = crowd_of(400, clock)
    answer(crowd, clock, per_second=400, seconds=3.0, refill=True)
    fast = crowd.limit
    answer(crowd, clock, per_second=40, seconds=10.0, refill=True)

    assert fast == pytest.approx(200, abs=4)
    assert crowd.limit == pytest.approx(20, abs=2)


def test_after_some_calm_a_burst_is_a_burst_again():
    """Yesterday's overload says nothing of today's."""
    clock = Clock()
    crowd = crowd_of(30, clock)
    clock.now += 1.0
    assert not crowd.enter()
    for _ in range(30):
        crowd.leave(answered=True)
    clock.now += 2 * CALM_S

    assert sum(crowd.enter() for _ in range(100)) == 100


def test_a_failure_leaves_but_is_no_answer():
    """A replica that fails everything at once would else seem to be a fast one."""
    clock = Clock()
    crowd = crowd_of(20, clock)
    for _ in range(20):
        clock.now += 0.1
        crowd.leave(answered=False)

    assert crowd.count == 0
    assert crowd.limit == 10


def test_a_crowded_replica_refuses_at_once_and_stays_healthy(serve, monkeypatch):
    """429 with Retry-After while others wait; health is answered; whoever was taken gets an answer, and then there is room."""
    service = classifier_service(slots=1, max_wait_s=0.05)
    go_on = threading.Event()
    monkeypatch.setattr(type(service.task), "costly", True, raising=False)
    encode = service.task.encode

    def slow_encode(*arguments):
        assert go_on.wait(120)
        return encode(*arguments)

    monkeypatch.setattr(service.task, "encode", slow_encode)
    server = serve(service)
    ask = {"instances": [{"text": "a"}]}
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        taken = [pool.submit(httpx.post, f"{server.url}/v1/predict/clf", json=ask, timeout=120) for _ in range(3)]
        until = time.monotonic() + 60
        while (refused := httpx.post(f"{server.url}/v1/predict/clf", content=b"{")).status_code != 429:
            assert time.monotonic() < until
            time.sleep(0.02)
        healthy = server.client.get("/health/ready")
        go_on.set()
        answers = [one.result() for one in taken]

    assert refused.json()["error"]["code"] == "queue_full"
    assert int(refused.headers["retry-after"]) >= 1
    assert BUSY_HEADER in refused.headers and BUSY_HEADER not in healthy.headers
    assert healthy.status_code == 200
    assert [one.status_code for one in answers] == [200] * 3
    assert server.post("/v1/predict/clf", **ask).status_code == 200
    assert 'recurra_requests_rejected_total{model="clf",reason="queue_full"}' in server.client.get("/metrics").text
