"""The bundles of one replica: the stable one, a candidate beside it, and older ones that pinned sessions go on with."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

from recurra.errors import RegistryError, RequestError
from recurra.serving.service import Service
from recurra.serving.session_keeping import sessions_of
from recurra.serving.session_service import SessionService
from recurra.serving.split import takes_candidate
from recurra.serving.vault_versions import Shard

log = logging.getLogger(__name__)

TEND_S = 1.0


class Desk:
    """One bundle at work: its engine, and the sessions that go on with it.

    Args:
        service: The bundle.
        vault: Shards that keep the sessions; none = the store alone keeps them.
        deployed: Whether a bundle is one of those that new sessions are given to.
        owner: Fingerprint of the bearer key.
    """

    def __init__(self, service: Service, vault: Sequence[Shard], deployed: Callable[[str], bool], owner: str) -> None:
        self.service = service
        self.digest = service.served.digest
        self.users = 0
        self.used_s = time.monotonic()
        self._kept = sessions_of(service, vault, deployed)
        self.sessions = SessionService(service, self._kept, owner) if self._kept is not None else None
        self._tending: asyncio.Task[None] | None = None

    async def open(self, loop: asyncio.AbstractEventLoop) -> None:
        await asyncio.to_thread(self.service.start, loop)
        if self._kept is not None:
            self._tending = asyncio.create_task(self._kept.tend())

    async def close(self) -> None:
        """Finish what is here, for `shutdown_s` at most."""
        await self.service.drain(self.service.config.shutdown_s)
        if self._tending is not None:
            self._tending.cancel()
        if self._kept is not None:
            await self._kept.close()
        await asyncio.to_thread(self.service.stop)


class Lineup:
    """Runs on the event loop of its application, which opens and closes it.

    Args:
        stable: What everything goes to that the candidate does not get.
        candidate: Gets a share of new sessions and of requests outside of sessions.
        share: Of the candidate, in [0, 1].
        load: Fetches a bundle by its digest for sessions that were begun with it; blocking. None = they are refused.
        vault: Shards that keep the sessions.
        owner: Fingerprint of the bearer key.
    """

    def __init__(
        self,
        stable: Service,
        candidate: Service | None = None,
        share: float = 0.0,
        *,
        load: Callable[[str], Service] | None = None,
        vault: Sequence[Shard] = (),
        owner: str = "",
    ) -> None:
        self._vault = vault
        self._owner = owner
        self._load = load
        self.stable = self._desk(stable)
        self.candidate = self._desk(candidate) if candidate is not None else None
        self.share = share
        self.withdrawn = False
        """Whether the candidate was taken back: it gets nothing new."""
        self._older: dict[str, Desk] = {}
        self._loading = asyncio.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._leaving = False
        self._tending: asyncio.Task[None] | None = None

    @property
    def deployed(self) -> list[Desk]:
        """Those that new work goes to."""
        return [self.stable] if self.candidate is None or self.withdrawn else [self.stable, self.candidate]

    def describe(self) -> list[dict[str, Any]]:
        """The deployed bundles for `GET /v1/models`; a candidate has the id by which a request can ask for it."""
        stable, *candidates = (desk.service.describe() for desk in self.deployed)
        return [
            stable,
            *({**one, "id": f"{one['id']}@{one['digest'][:12]}", "share": self.share} for one in candidates),
        ]

    def is_deployed(self, digest: str) -> bool:
        return any(desk.digest == digest for desk in self.deployed)

    def is_withdrawn(self, digest: str) -> bool:
        return self.withdrawn and self.candidate is not None and self.candidate.digest == digest

    def choose(self, key: str | None) -> Desk:
        """The bundle for a new session, or a request outside of sessions; the same for the same key."""
        if self.candidate is not None and not self.withdrawn and takes_candidate(key, self.share):
            return self.candidate
        return self.stable

    def withdraw(self) -> None:
        """Give the candidate nothing new; its sessions do what `on_update` says."""
        self.withdrawn = True

    @asynccontextmanager
    async def desk(self, digest: str) -> AsyncIterator[Desk]:
        """The bundle of a session, fetched if it is not here; it stays at least as long as the block.

        Raises:
            RequestError: 412 when there is no such bundle any more, 503 when too many others are in use.
        """
        desk = self._ready(digest) or await self._fetched(digest)
        desk.users += 1
        try:
            yield desk
        finally:
            desk.users -= 1
            desk.used_s = time.monotonic()

    async def open(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        for desk in self._all:
            await desk.open(loop)
        self._tending = asyncio.create_task(self._tend())

    async def close(self) -> None:
        if self._tending is not None:
            self._tending.cancel()
        await asyncio.gather(*(desk.close() for desk in self._all))

    def leave(self, leaving: bool = True) -> None:
        """Take note that the replica is to leave."""
        self._leaving = leaving
        for desk in self._all:
            desk.service.leave(leaving)

    @property
    def healthy(self) -> bool:
        return all(desk.service.engine.healthy for desk in self._all)

    def mean_load(self) -> float:
        """See `Engine.mean_load`: of all engines together, since they share one processor."""
        return sum(desk.service.engine.mean_load() for desk in self._all)

    @property
    def _all(self) -> list[Desk]:
        return [self.stable, *([self.candidate] if self.candidate is not None else []), *self._older.values()]

    def _desk(self, service: Service) -> Desk:
        return Desk(service, self._vault, self.is_deployed, self._owner)

    def _ready(self, digest: str) -> Desk | None:
        return next((desk for desk in self._all if desk.digest == digest), None)

    async def _fetched(self, digest: str) -> Desk:
        async with self._loading:
            if (desk := self._ready(digest)) is not None:
                return desk
            if self._load is None or self._loop is None:
                raise _gone(digest, self.stable.digest)
            await self._make_room()
            begin = time.perf_counter()
            try:
                service = await asyncio.to_thread(self._load, digest)
            except RegistryError as exc:
                raise _gone(digest, self.stable.digest) from exc
            desk = self._desk(service)
            desk.service.leave(self._leaving)
            await desk.open(self._loop)
            self._older[digest] = desk
            log.info("Bundle %s is ready for its sessions after %.2f s.", digest[:12], time.perf_counter() - begin)
            return desk

    async def tend(self) -> None:
        """Close older bundles that have been idle for as long as a session may be: no session needs them."""
        idle_s = self.stable.service.config.sessions.ttl_s
        async with self._loading:
            for desk in list(self._older.values()):
                if not desk.users and time.monotonic() - desk.used_s > idle_s:
                    await self._close(desk)

    async def _tend(self) -> None:
        while True:
            await asyncio.sleep(TEND_S)
            await self.tend()

    async def _close(self, desk: Desk) -> None:
        del self._older[desk.digest]
        await desk.close()

    async def _make_room(self) -> None:
        """Close older bundles, the one idle for longest first, until there is room for another."""
        most = self.stable.service.config.sessions.older_bundles
        while len(self._older) >= most:
            idle = [desk for desk in self._older.values() if not desk.users]
            if not idle:
                raise RequestError(
                    f"{most} older bundles are in use at this replica (serve.sessions.older_bundles). Send the request again.",
                    status=503,
                    code="bundles_busy",
                    retry_after_s=1.0,
                )
            oldest = min(idle, key=lambda desk: desk.used_s)
            await self._close(oldest)


def _gone(digest: str, served: str) -> RequestError:
    return RequestError(
        f"The session belongs to bundle {digest[:12]} of the model, which the registry does not have any more, and this "
        f"service serves {served[:12]}. Create a new session, or publish that bundle again.",
        status=412,
        code="digest_mismatch",
    )
