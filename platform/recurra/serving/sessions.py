"""Sessions of one replica: the newest version of each in memory, and in `Versions` before the answer that acknowledges
it. Any replica can take any session up from there."""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from numpy.typing import NDArray

from recurra.errors import ConflictError, NotFoundError, RequestError, StorageError
from recurra.serving.config import SessionConfig
from recurra.serving.session_errors import UNKNOWN, ForeignBundleError, OvertakenError, store_failed, unknown
from recurra.serving.snapshot import Snapshot
from recurra.serving.versions import Versions
from recurra.telemetry.metrics import Metrics

log = logging.getLogger(__name__)
T = TypeVar("T")

ID_PATTERN = re.compile(r"s-[A-Za-z0-9_-]{32}")
CONFLICT_RETRIES = 3
LEASE_TRIES = 5
TEND_S = 1.0


@dataclass(eq=False)
class _Entry:
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    snapshot: Snapshot | None = None
    checked_s: float = float("-inf")
    """When the store last had no newer version, by the monotonic clock."""
    taken: bool = False
    """Whether this replica took it over when it last looked."""
    holders: int = 0


class Held:
    """One session while a request works on it; no other request of this replica does."""

    def __init__(self, sessions: Sessions, entry: _Entry) -> None:
        self._sessions = sessions
        self._entry = entry

    @property
    def snapshot(self) -> Snapshot:
        assert self._entry.snapshot is not None
        return self._entry.snapshot

    async def commit(self, snapshot: Snapshot, consumed: NDArray[Any] | None = None) -> Snapshot:
        """Make this the newest version; see `Versions.add`.

        Raises:
            OvertakenError: Another replica has changed the session meanwhile; `self.snapshot` is its version now.
            RequestError: 503 when the store fails, 410 when the session is gone.
        """
        return await self._sessions._commit(self._entry, snapshot, consumed)

    async def refresh(self) -> Snapshot:
        """The newest version there is, whoever wrote it."""
        self._entry.checked_s = float("-inf")
        await self._sessions._refresh(self.snapshot.id, self._entry, take=self._entry.taken)
        await self._sessions._check(self._entry)
        return self.snapshot


class Sessions:
    """Keeps the sessions that this replica last worked on, up to a number of bytes.

    Args:
        versions: Of this model's sessions.
        digest: Of the bundle that is served.
        config: Time limit and byte budget.
        metrics: With the label `model` bound.
        adopt: What a session of another bundle becomes here; None = it is refused.
        clock: Seconds, monotonic.
        wall: Seconds since 1970.
    """

    def __init__(
        self,
        versions: Versions,
        digest: str,
        config: SessionConfig,
        metrics: Metrics,
        adopt: Callable[[Snapshot], Awaitable[Snapshot | None]],
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.config = config
        self.wall = wall
        self.versions = versions
        self._digest = digest
        self._adopt = adopt
        self._clock = clock
        self._metrics = metrics
        self._warm = metrics.gauge("recurra_sessions", tier="warm")
        self._entries: OrderedDict[str, _Entry] = OrderedDict()
        self._bytes = 0

    async def create(self, snapshot: Snapshot) -> Snapshot:
        """Write the first version of a session; its id is new and cannot be guessed."""
        first = replace(snapshot, id=snapshot.id or new_session_id(), version=1, last=None, reset=False, replayed=False)
        entry = _Entry(taken=True)
        self._entries[first.id] = entry
        try:
            return await self._commit(entry, first)
        except RequestError:
            self._entries.pop(first.id, None)
            raise

    def expires_s(self, snapshot: Snapshot) -> float:
        """When the session ends if nobody uses it, in seconds since 1970."""
        return snapshot.used_s + min(self.config.ttl_s, snapshot.ttl_s or self.config.ttl_s)

    @asynccontextmanager
    async def hold(self, id: str, fresh: Snapshot | None = None, *, take: bool = True) -> AsyncIterator[Held]:
        """The session, for one request at a time; others of this replica wait.

        Args:
            fresh: What the session begins anew from, whether there is one or not; None = it must be there.
            take: Whether it will be changed, so that this replica must take it over; who only looks does not.

        Raises:
            RequestError: 404 unknown, 410 expired or deleted, 503 when the store fails.
            ForeignBundleError: It goes on with another bundle.
        """
        if not ID_PATTERN.fullmatch(id):
            raise unknown(id)
        entry = self._entries.setdefault(id, _Entry())
        entry.holders += 1
        try:
            async with entry.lock:
                if fresh is not None:
                    await self._restart(id, entry, fresh)
                else:
                    await self._refresh(id, entry, take=take)
                    await self._check(entry)
                begun = entry.snapshot
                try:
                    yield Held(self, entry)
                finally:
                    if fresh is not None and entry.snapshot is begun:
                        self._forget(entry)  # nothing was committed: the old one stands
        finally:
            entry.holders -= 1
            self._settle(id, entry)

    async def delete(self, id: str) -> None:
        """End the session, for every replica."""
        async with self.hold(id) as held:
            await retried(lambda: held.commit(held.snapshot.tombstone("deleted", self.wall())))
            self._count("deleted")

    async def tend(self) -> None:
        """Have cleared away what has been replaced and what has expired, for as long as the replica lives."""
        while True:
            await asyncio.sleep(TEND_S)
            try:
                for _ in range(await self.versions.tend(self.config.ttl_s, self.wall())):
                    self._count("expired")
            except StorageError as exc:
                log.warning("Old sessions were not cleared away: %s", exc)

    async def close(self) -> None:
        """Everything acknowledged is kept already."""
        await self.versions.close()

    async def _commit(self, entry: _Entry, snapshot: Snapshot, consumed: NDArray[Any] | None = None) -> Snapshot:
        entry.checked_s = float("-inf")  # until it is known to be written: the request may be cancelled on the way
        for _ in range(LEASE_TRIES):
            try:
                with self._metrics.histogram("recurra_session_store_seconds", operation="save").time():
                    snapshot = await self.versions.add(snapshot, consumed)
            except ConflictError:
                self._count("conflict")
                await self._refresh(snapshot.id, entry, take=True)
                await self._check(entry)
                assert entry.snapshot is not None
                if entry.snapshot.version != snapshot.version - 1:
                    break
                # Another replica took the session over and left it as it was: take it back.
                snapshot = replace(snapshot, epoch=entry.snapshot.epoch)
                entry.checked_s = float("-inf")
            except StorageError as exc:
                self._metrics.counter("recurra_session_store_failures_total", operation="save").inc()
                raise store_failed(exc) from exc
            else:
                self._remember(entry, snapshot)
                return snapshot
        assert entry.snapshot is not None
        raise OvertakenError(entry.snapshot.step)

    async def _refresh(self, id: str, entry: _Entry, *, take: bool) -> None:
        """Look for a newer version where our copy is too old to be trusted, or not ours to change."""
        untaken = take and self.versions.leases and not entry.taken
        if not untaken and entry.snapshot is not None and self._clock() - entry.checked_s < self.config.trust_s:
            return
        asked_s = self._clock()
        known = entry.snapshot
        try:
            with self._metrics.histogram("recurra_session_store_seconds", operation="load").time():
                newest = await self.versions.newest(id, known, take=take)
        except NotFoundError as exc:
            raise unknown(id) from exc
        except StorageError as exc:
            self._metrics.counter("recurra_session_store_failures_total", operation="load").inc()
            raise store_failed(exc) from exc
        if known is None or newest.version != known.version:
            self._count("restored")
        self._remember(entry, newest)
        entry.checked_s, entry.taken = asked_s, take

    async def _restart(self, id: str, entry: _Entry, fresh: Snapshot) -> None:
        """Put `fresh` in the place of whatever there is, to be committed as the version after it."""
        entry.checked_s = float("-inf")
        version = epoch = 0
        try:
            await self._refresh(id, entry, take=True)
            assert entry.snapshot is not None
            version, epoch = entry.snapshot.version, entry.snapshot.epoch
        except RequestError as exc:
            if exc.code != UNKNOWN:
                raise
            entry.taken = True
        self._remember(entry, replace(fresh, id=id, version=version, epoch=epoch))

    def _forget(self, entry: _Entry) -> None:
        self._bytes -= entry.snapshot.size_bytes if entry.snapshot else 0
        entry.snapshot = None

    async def _check(self, entry: _Entry) -> None:
        snapshot = entry.snapshot
        assert snapshot is not None
        if snapshot.gone is None and self.wall() > self.expires_s(snapshot):
            tombstone = snapshot.tombstone("expired", self.wall())
            self._count("expired")
            snapshot = await self._commit(entry, tombstone)
        if snapshot.gone is not None:
            raise RequestError(
                f"The session was {snapshot.gone}. Create a new one with POST /v1/sessions.",
                status=410,
                code=f"session_{snapshot.gone}",
            )
        if snapshot.digest != self._digest:
            self._forget(entry)  # it comes without its state
            adopted = await self._adopt(snapshot)
            if adopted is None:
                raise ForeignBundleError(snapshot.digest, self._digest)
            self._count("replayed" if adopted.replayed else "reset")
            self._remember(entry, adopted)

    def _remember(self, entry: _Entry, snapshot: Snapshot) -> None:
        self._bytes += snapshot.size_bytes - (entry.snapshot.size_bytes if entry.snapshot else 0)
        entry.snapshot = snapshot
        entry.checked_s = self._clock()
        if snapshot.id in self._entries:
            self._entries.move_to_end(snapshot.id)
        while self._bytes > self.config.memory_bytes and self._forget_oldest():
            pass
        self._warm.set(len(self._entries))

    def _forget_oldest(self) -> bool:
        for id, entry in self._entries.items():
            if not entry.holders:
                self._drop(id, entry)
                return True
        return False

    def _settle(self, id: str, entry: _Entry) -> None:
        """Keep no entry for a session that is not there."""
        if not entry.holders and (entry.snapshot is None or entry.snapshot.gone) and self._entries.get(id) is entry:
            self._drop(id, entry)
            self._warm.set(len(self._entries))

    def _drop(self, id: str, entry: _Entry) -> None:
        self._bytes -= entry.snapshot.size_bytes if entry.snapshot else 0
        del self._entries[id]

    def _count(self, event: str) -> None:
        self._metrics.counter("recurra_session_events_total", event=event).inc()


def new_session_id() -> str:
    """An id that nobody can guess; it is all that says who may use the session."""
    return f"s-{secrets.token_urlsafe(24)}"


async def retried(work: Callable[[], Awaitable[T]]) -> T:
    """The result of `work`, done anew on the newest version where another replica was faster."""
    for _ in range(CONFLICT_RETRIES):
        try:
            return await work()
        except OvertakenError:
            continue
    return await work()


def empty_snapshot(model: str, digest: str, state: bytes, now_s: float, **facts: Any) -> Snapshot:
    """A session that is not written yet."""
    return Snapshot(
        **{
            "id": "",
            "model": model,
            "digest": digest,
            "version": 1,
            "step": 0,
            "epoch": 0,
            "created_s": now_s,
            "used_s": now_s,
            "pending": (),
            "context": None,
            "state": state,
            **facts,
        }
    )
