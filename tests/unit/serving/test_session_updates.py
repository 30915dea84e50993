"""What an update costs a replica: how many sessions it replays at a time, and in which parts."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import numpy as np
import pytest
from tests.unit.serving.conftest import language_service

from recurra.errors import RequestError
from recurra.serving import session_updates
from recurra.serving.session_updates import AT_ONCE, Updates
from recurra.serving.sessions import empty_snapshot
from recurra.serving.snapshot import Snapshot

HERE, BEFORE = "d" * 64, "e" * 64


def updates(read, *, trace_steps: int = 0, **settings) -> Updates:
    service = language_service(None, **{"sessions": {"on_update": "replay"}, **settings})
    return Updates(service, lambda digest: digest == HERE, read, trace_steps)


def session(updates: Updates, inputs: int) -> Snapshot:
    """Of another bundle, which has read 1, 2, 3, …"""
    beginning = updates._service.histories.beginning()
    history = beginning.after(np.arange(1, inputs + 1), 4096)
    return replace(empty_snapshot("lm", BEFORE, b"", 0.0), step=inputs, history=history)


async def joined(state: bytes, inputs) -> bytes:
    """A state that shows what was read."""
    return state + bytes(inputs.tolist())


def test_sessions_are_replayed_a_few_at_a_time_and_none_waits_longer_than_a_request_may():
    """All come together after an update: half of the slots stay free for others, and who has a turn gets done first."""

    async def ask() -> None:
        running = most = 0
        go_on = asyncio.Event()

        async def slow(state: bytes, inputs) -> bytes:
            nonlocal running, most
            running += 1
            most = max(most, running)
            try:
                await go_on.wait()
            finally:
                running -= 1
            return state

        replaying = updates(slow, slots=8, deadline_s=1.0)
        everyone = [replaying.adopt(session(replaying, 3)) for _ in range(6)]
        refused = await asyncio.gather(*everyone, return_exceptions=True)
        assert [(error.status, error.code, error.retry_after_s) for error in refused] == [(503, "replaying", 1.0)] * 6
        assert (running, most) == (0, 4)
        go_on.set()
        replayed = await asyncio.gather(*(replaying.adopt(session(replaying, 3)) for _ in range(6)))
        assert [(one.digest, one.replayed) for one in replayed] == [(HERE, True)] * 6
        assert most == 4

    asyncio.run(ask())


def test_a_replay_that_takes_longer_than_a_request_goes_on_with_the_next(monkeypatch):
    """From the last part that was read; else a long session of a slow model would never come to its end."""
    monkeypatch.setattr(session_updates, "PART_STEPS", 2)

    async def ask() -> None:
        read, slow = [], True

        async def noted(state: bytes, values) -> bytes:
            if slow and values[0] == 5:
                await asyncio.Event().wait()
            read.append(values.tolist())
            return await joined(state, values)

        replaying = updates(noted, deadline_s=1.0)
        one, other = session(replaying, 7), replace(session(replaying, 3), version=2)
        with pytest.raises(RequestError, match="still being read again"):
            await replaying.adopt(one)
        slow = False
        found = [await replaying.adopt(each) for each in (other, one)]
        start = replaying._service.engine.initial_state

        assert read == [[1, 2], [3, 4], [1, 2], [3], [5, 6], [7]]
        assert [each.state for each in found] == [start + bytes(range(1, count + 1)) for count in (3, 7)]
        assert not replaying._begun

    asyncio.run(ask())


def test_a_replay_that_fails_leaves_its_turn_to_the_next():
    """And the session as it was: the error goes to the client."""

    async def ask() -> None:
        async def full(state: bytes, inputs) -> bytes:
            raise RequestError("The queue is full.", status=429, code="queue_full")

        replaying = updates(full)
        for _ in range(AT_ONCE + 1):
            with pytest.raises(RequestError, match="queue is full"):
                await asyncio.wait_for(replaying.adopt(session(replaying, 3)), 1)

    asyncio.run(ask())


@pytest.mark.parametrize(
    ("inputs", "parts"),
    [(0, []), (1, [[1]]), (3, [[1, 2, 3]]), (5, [[1, 2], [3, 4, 5]])],
)
def test_the_trail_of_the_last_steps_is_there_after_a_replay(inputs, parts):
    """So that what an NTM's heads did at them can be shown at once."""

    async def ask() -> None:
        read = []

        async def noted(state: bytes, values) -> bytes:
            read.append(values.tolist())
            return await joined(state, values)

        replaying = updates(noted, trace_steps=3)
        found = await replaying.adopt(session(replaying, inputs))
        start = replaying._service.engine.initial_state

        assert read == parts
        assert found.state == start + bytes(range(1, inputs + 1))
        if parts:
            assert found.trail.inputs.tolist() == parts[-1]
            assert found.trail.older == start + bytes(parts[0] if len(parts) > 1 else [])
        else:
            assert found.trail is None

    asyncio.run(ask())


@pytest.mark.parametrize(
    "change",
    [
        {"digest": HERE},
        {"released_s": 5.0},
        {"history": None},
    ],
)
def test_who_goes_on_elsewhere_is_left_alone(change):
    """With a bundle that is deployed, or one of a later deployment, or without a known beginning."""
    replaying = updates(joined)
    assert asyncio.run(replaying.adopt(session(replaying, 3))).replayed
    assert asyncio.run(replaying.adopt(replace(session(replaying, 3), **change))) is None


def test_an_older_bundle_takes_no_session_over():
    """It is here for sessions that are pinned to it."""
    service = language_service(None, sessions={"on_update": "replay"})
    older = Updates(service, lambda digest: digest == "f" * 64, joined, 0)

    assert asyncio.run(older.adopt(session(older, 3))) is None
