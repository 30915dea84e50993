"""All sessions of a replica, whichever bundle they go on with: what the routes call."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from typing import Any, TypeVar

from recurra.errors import RecurraError, RequestError
from recurra.serving.lineup import Desk, Lineup
from recurra.serving.memory import MemoryView
from recurra.serving.messages import SessionAnswer, SessionCreate, SessionStep
from recurra.serving.session_errors import ForeignBundleError
from recurra.serving.session_service import SessionService
from recurra.serving.sessions import new_session_id

T = TypeVar("T")
Heard = Callable[[str, float | None, bool], None]

KNOWN = 100_000
"""Sessions of which a replica remembers the bundle; of others it asks."""
MOVES = 3
"""Times that a session may turn out to be with another bundle while one request looks for it."""


class SessionDesks:
    """Hands each request to the bundle that its session goes on with; see `SessionService` for what each one does.

    Args:
        lineup: The bundles; the stable one must have sessions.
        heard: Told of each request; see `CanaryGuard.hear`.
    """

    def __init__(self, lineup: Lineup, heard: Heard) -> None:
        self._lineup = lineup
        self._heard = heard
        self._known: OrderedDict[str, str] = OrderedDict()

    async def create(self, request: SessionCreate) -> SessionAnswer:
        id = new_session_id()
        async with self._lineup.desk(self._first(id)) as desk, self._watched(desk) as sessions:
            return self._noted(await sessions.create(request, id))

    async def create_from(self, data: bytes) -> SessionAnswer:
        """Of a bundle that is deployed; see `SessionService.create_from`."""
        refused: RequestError | None = None
        for desk in self._lineup.deployed:
            if desk.sessions is None:
                continue
            try:
                return self._noted(await desk.sessions.create_from(data))
            except RequestError as exc:
                if exc.code != "digest_mismatch":
                    raise
                refused = refused or exc
        assert refused is not None
        raise refused

    async def look(self, id: str) -> SessionAnswer:
        return await self._at(id, lambda sessions: sessions.look(id))

    async def step(self, id: str, request: SessionStep) -> bytes:
        return await self._at(id, lambda sessions: sessions.step(id, request))

    async def stream(self, id: str, request: SessionStep) -> AsyncGenerator[dict[str, Any], None]:
        digest = self._likely(id)
        for turn in range(MOVES):
            begun = False
            try:
                async with (
                    self._lineup.desk(digest) as desk,
                    self._watched(desk, timed=False) as sessions,
                    aclosing(sessions.stream(id, request)) as events,
                ):
                    async for event in events:
                        begun = True
                        yield event
                self._remember(id, digest)
                return
            except ForeignBundleError as exc:
                if begun or turn + 1 == MOVES:
                    raise
                digest = exc.digest

    async def sequence(self, id: str, request: SessionStep, *, start: bool, end: bool) -> dict[str, Any]:
        if start:
            self._remember(id, self._first(id))
        return await self._at(id, lambda sessions: sessions.sequence(id, request, start=start, end=end))

    async def export(self, id: str) -> bytes:
        return await self._at(id, lambda sessions: sessions.export(id))

    async def replace(self, id: str, data: bytes) -> SessionAnswer:
        return await self._at(id, lambda sessions: sessions.replace(id, data))

    async def memory(self, id: str, steps: int) -> MemoryView:
        return await self._at(id, lambda sessions: sessions.memory(id, steps))

    async def fork(self, id: str) -> SessionAnswer:
        return self._noted(await self._at(id, lambda sessions: sessions.fork(id)))

    async def delete(self, id: str) -> None:
        await self._at(id, lambda sessions: sessions.delete(id))
        self._known.pop(id, None)

    async def _at(self, id: str, work: Callable[[SessionService], Awaitable[T]]) -> T:
        """What the session's bundle answers, wherever the session turns out to be."""
        digest = self._likely(id)
        for turn in range(MOVES):
            try:
                async with self._lineup.desk(digest) as desk, self._watched(desk) as sessions:
                    answer = await work(sessions)
            except ForeignBundleError as exc:
                if turn + 1 == MOVES:
                    raise
                digest = exc.digest
            else:
                self._remember(id, digest)
                return answer
        raise AssertionError("The last turn returns or raises.")

    def _likely(self, id: str) -> str:
        """The bundle to ask first: one that is wrong names the right one."""
        known = self._known.get(id)
        moves = self._lineup.stable.service.config.sessions.on_update != "pin"
        if known is None or (moves and self._lineup.is_withdrawn(known)):
            return self._first(id)
        return known

    def _first(self, id: str) -> str:
        """The bundle that a session of this id is begun with."""
        desk = self._lineup.choose(id)
        return (desk if desk.sessions is not None else self._lineup.stable).digest

    def _noted(self, answer: SessionAnswer) -> SessionAnswer:
        self._remember(answer.id, answer.digest)
        return answer

    def _remember(self, id: str, digest: str) -> None:
        self._known[id] = digest
        self._known.move_to_end(id)
        if len(self._known) > KNOWN:
            self._known.popitem(last=False)

    @asynccontextmanager
    async def _watched(self, desk: Desk, *, timed: bool = True) -> AsyncIterator[SessionService]:
        assert desk.sessions is not None
        begin = time.perf_counter()
        try:
            yield desk.sessions
        except ForeignBundleError:
            raise  # it did nothing
        except Exception as exc:
            failed = not isinstance(exc, RecurraError) or is_failure(exc.status)
            self._heard(desk.digest, None, failed)
            raise
        else:
            self._heard(desk.digest, time.perf_counter() - begin if timed else None, False)


def is_failure(status: int) -> bool:
    """Whether an answer tells against a bundle: a full queue and a replica that leaves (429, 503) do not."""
    return status >= 500 and status != 503
