"""What becomes of a session when another bundle is deployed than the one it was begun with (`serve.sessions.on_update`)."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

from numpy.typing import NDArray

from recurra.errors import RequestError
from recurra.serving.history import History
from recurra.serving.service import Service
from recurra.serving.snapshot import Snapshot
from recurra.serving.trail import Trail

Read = Callable[[bytes, NDArray[Any]], Awaitable[bytes]]
"""The state after inputs, at least one."""

AT_ONCE = 8
"""Sessions that are replayed at a time. After an update all of them come together: a few that get done are better than all
of them late, and slots are left for others."""
PART_STEPS = 64
"""Inputs of a session that are read at once, before the state is noted. Whoever steps beside the replays waits for a forward
pass over `AT_ONCE` such parts at most, and a request that takes too long loses no more than one."""
BEGUN = 256
"""Sessions whose replay was begun of which the state is noted."""


class Updates:
    """Takes sessions of other bundles over into the one of a service.

    Args:
        service: Of the bundle that they are to go on with.
        deployed: Whether a bundle is one of those that new sessions are given to.
        read: As the engine of the service does.
        trace_steps: Of a trail; 0 = none is kept.
    """

    def __init__(self, service: Service, deployed: Callable[[str], bool], read: Read, trace_steps: int) -> None:
        self._service = service
        self._deployed = deployed
        self._read = read
        self._trace_steps = trace_steps
        self._begun: OrderedDict[tuple[str, int, float], tuple[int, bytes]] = OrderedDict()
        """How far the replay of a version has come."""
        self._turns = asyncio.Semaphore(max(1, min(AT_ONCE, service.config.slots // 2)))

    async def adopt(self, snapshot: Snapshot) -> Snapshot | None:
        """The session as it goes on with this bundle; None where it goes on with its own. Nothing is written: whoever
        changes the session commits it, as any version, and who was slower finds that.

        Raises:
            RequestError: It has to be replayed, and the engine refuses or fails to; or 503, it takes longer than a request may.
        """
        policy = self._service.config.sessions.on_update
        if policy == "pin" or self._stays(snapshot):
            return None
        if policy == "reset":
            state = self._service.engine.initial_state
            return self._moved(snapshot, state, pending=(), context=None, history=None, reset=True)
        if snapshot.history is None or not self._service.histories.fits(snapshot.history):
            return None
        try:
            async with asyncio.timeout(self._service.config.deadline_s), self._turns:
                state, trail = await self._again(snapshot, snapshot.history)
        except TimeoutError as exc:
            raise _not_yet() from exc
        return self._moved(snapshot, state, trail=trail, replayed=True)

    def _stays(self, snapshot: Snapshot) -> bool:
        """Whether the session goes on with a bundle that is deployed, or with one of a later deployment, whose replicas
        run already while ours are still being replaced; or this bundle is itself an older one."""
        served = self._service.served
        if not self._deployed(served.digest) or self._deployed(snapshot.digest):
            return True
        return snapshot.released_s > served.released_s

    def _moved(self, snapshot: Snapshot, state: bytes, **changes: Any) -> Snapshot:
        served = self._service.served
        facts: dict[str, Any] = {"trail": None, "journaled": 0, **changes}
        return replace(snapshot, digest=served.digest, released_s=served.released_s, state=state, **facts)

    async def _again(self, snapshot: Snapshot, history: History) -> tuple[bytes, Trail | None]:
        """The state after everything that is kept, and the trail of the last steps where one is kept."""
        key = (snapshot.id, snapshot.version, snapshot.used_s)
        position, state = self._begun.get(key, (0, self._service.engine.initial_state))
        inputs = history.wide()
        traced = max(0, len(inputs) - self._trace_steps)
        while position < traced:
            end = min(position + PART_STEPS, traced)
            state = await self._read(state, inputs[position:end])
            position = end
            self._note(key, position, state)
        trail = None
        if traced < len(inputs):
            before, rest = state, inputs[traced:]
            state = await self._read(before, rest)
            trail = Trail.beginning(before, rest).after(rest, state, self._trace_steps)
        self._begun.pop(key, None)
        return state, trail

    def _note(self, key: tuple[str, int, float], position: int, state: bytes) -> None:
        self._begun[key] = (position, state)
        self._begun.move_to_end(key)
        if len(self._begun) > BEGUN:
            self._begun.popitem(last=False)


def _not_yet() -> RequestError:
    return RequestError(
        "The model was updated, and what the session has read is still being read again (serve.sessions.on_update: replay). "
        "Send the request again: it goes on from there.",
        status=503,
        code="replaying",
        retry_after_s=1.0,
    )
