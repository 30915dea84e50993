import json
import socket
import time

import pytest

from recurra.errors import TrainingError
from recurra.storage.url import open_store
from recurra.training import lease as lease_module
from recurra.training.lease import EXPIRY_S, Lease, check_lease, newest_lease


@pytest.fixture
def store(local_url):
    return open_store(local_url)


@pytest.fixture(autouse=True)
def no_heartbeats(monkeypatch):
    """The clock of these tests stands still unless they move it."""
    monkeypatch.setattr(lease_module, "HEARTBEAT_S", 1000.0)


class Watch:
    """Stands in for sleep: notes the seconds, and lets something happen meanwhile."""

    def __init__(self, meanwhile=lambda: None):
        self.slept_s = 0.0
        self._meanwhile = meanwhile

    def __call__(self, seconds):
        self.slept_s += seconds
        self._meanwhile()


def foreign(store, number=1, **more):
    """A lease of another machine."""
    body = {"owner": "other", "host": "elsewhere", "boot": "x", "pid": 1, **more}
    store.write(f"lease/{number:08d}.json", json.dumps(body).encode())


def test_the_second_launch_is_refused_while_the_first_lives(store):
    """The same command typed twice: two writers would tear one run apart. The message says who holds it."""
    foreign(store)
    watch = Watch(lambda: foreign(store, beat=watch.slept_s))

    with pytest.raises(
        TrainingError, match="Run 'a' is being trained by another process .host elsewhere, process 1.*another name"
    ):
        Lease(store, "a", wait=watch)


def test_a_launch_on_the_same_machine_is_refused_too(store, monkeypatch):
    """Its process is alive, so that only its heartbeat tells; the first one is enough."""
    with Lease(store, "a") as held:
        key = f"lease/{held.number:08d}.json"

        def beat():
            store.write(key, json.dumps({**json.loads(store.read(key)), "beat": watch.slept_s}).encode())

        watch = Watch(beat)
        with pytest.raises(TrainingError, match=socket.gethostname()):
            Lease(store, "a", wait=watch)
    assert watch.slept_s == 1000.0


def test_a_lease_that_nobody_renews_is_taken_over(store):
    """The machine that held it is gone: the next launch waits for the time that a heartbeat may take, then goes on."""
    foreign(store)
    watch = Watch()

    with Lease(store, "a", wait=watch) as lease:
        assert lease.number == 2
    assert watch.slept_s >= EXPIRY_S


def test_a_released_lease_is_taken_at_once(store):
    """One run after the other needs no waiting."""
    with Lease(store, "a"):
        pass
    watch = Watch()
    with Lease(store, "a", wait=watch) as lease:
        assert lease.number == 2
    assert watch.slept_s == 0


def test_the_lease_of_a_killed_process_of_this_machine_is_taken_at_once(store, monkeypatch):
    """SIGKILL of the driver and the same command again: nobody wants to wait for a lease to run out."""
    held = Lease(store, "a")
    held._ending.set()
    body = json.loads(store.read("lease/00000001.json"))
    store.write("lease/00000001.json", json.dumps({**body, "pid": 2**22 + 1}).encode())
    watch = Watch()

    with Lease(store, "a", wait=watch):
        pass
    assert watch.slept_s == 0


def test_of_two_launches_at_the_same_moment_one_gets_it(store):
    """Both find the old lease run out: creating the next number can succeed once only."""
    foreign(store)
    watch = Watch(lambda: None if watch.slept_s < EXPIRY_S else foreign(store, number=2))

    with pytest.raises(TrainingError, match="is being trained by another process"):
        Lease(store, "a", wait=watch)


def test_a_holder_finds_out_that_it_was_replaced(store):
    """It was stopped for a minute and taken for dead: it must not commit any more."""
    with Lease(store, "a") as lease:
        check_lease(store, lease.number)
        foreign(store, number=lease.number + 1)
        with pytest.raises(TrainingError, match="has taken over"):
            check_lease(store, lease.number)


def test_the_holder_is_heard_of_regularly(store, monkeypatch):
    """The heartbeat is all that others see of it."""
    monkeypatch.setattr(lease_module, "HEARTBEAT_S", 0.01)
    with Lease(store, "a"):
        seen: set[str] = set()
        until = time.monotonic() + 60
        while len(seen) < 3 and time.monotonic() < until:
            seen.add(json.dumps(newest_lease(store)[1]))
    assert len(seen) == 3
