"""Sessions in the vault, as a replica sees it: calls in batches, one shard away or not, journal entries replayed."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import secrets
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, Literal, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from recurra.errors import ConflictError, RequestError, UnreachableError
from recurra.serving.history import Histories
from recurra.serving.journal import from_entry, to_entry, worth_it
from recurra.serving.slots import StateLayout
from recurra.serving.snapshot import Snapshot, from_bytes, to_bytes
from recurra.serving.vault_copies import ShardLostError
from recurra.serving.vault_record import Commit, Loaded
from recurra.serving.vault_shard import OVER_BUDGET, STALE
from recurra.serving.versions import Versions

log = logging.getLogger(__name__)

PATIENCE_S = 20.0
"""How long a request waits for a shard that is being started again."""
PAUSE_S = 0.05
LEAVING_S = 2.0
IN_FLIGHT = 4
"""Calls to one shard at a time; what comes meanwhile goes together with the next."""
Item = TypeVar("Item")
Answer = TypeVar("Answer")


class Shard(Protocol):
    """What a replica asks of a shard; every method raises `ShardLostError` while it is away."""

    async def commit(self, commits: list[Commit]) -> list[str]:
        """See `VaultShard.commit`."""

    async def load(self, wanted: list[tuple[str, int, bool]]) -> list[Loaded | None]:
        """See `VaultShard.load`."""

    async def flush(self) -> None:
        """See `VaultShard.flush`."""

    async def meet(self) -> None:
        """Find it now: while the cluster's head is away it could not be found."""


@dataclass(frozen=True)
class Replica:
    """What the vault needs of the replica that asks."""

    layout: StateLayout
    digest: str
    """Of the bundle that the layout belongs to; of another one's sessions only the facts are read."""
    replay: Callable[[bytes, NDArray[Any]], Awaitable[bytes]]
    """The state after inputs."""
    expires_s: Callable[[Snapshot], float]
    trace_steps: int
    """Of a trail; 0 = none is kept."""
    journal_steps: int
    histories: Histories


class VaultVersions(Versions):
    """Newest versions in the shards of a vault.

    Args:
        shards: All of them, in order.
        replica: Who asks.
        before: Sessions of a time without a vault are found here; they move to the vault with their next step.
    """

    leases = True

    def __init__(self, shards: Sequence[Shard], replica: Replica, before: Versions) -> None:
        self._shards = shards
        self._commits = [_Batches(shard.commit) for shard in shards]
        self._loads = [_Batches(shard.load) for shard in shards]
        self._replica = replica
        self._before = before
        self._meeting: asyncio.Future[list[BaseException | None]] | None = None

    async def add(self, snapshot: Snapshot, consumed: NDArray[Any] | None = None) -> Snapshot:
        entry = whole = None
        if snapshot.gone is None:
            most = self._replica.journal_steps
            if consumed is not None and snapshot.version > 1 and worth_it(snapshot, consumed, most):
                entry = to_entry(snapshot, consumed)
                snapshot = replace(snapshot, journaled=snapshot.journaled + len(consumed))
            else:
                snapshot = replace(snapshot, journaled=0)
                whole = to_bytes(snapshot, self._replica.layout)
        commit = Commit(
            id=snapshot.id,
            version=snapshot.version,
            epoch=snapshot.epoch,
            nonce=secrets.token_hex(8),
            expires_s=self._replica.expires_s(snapshot),
            owner=snapshot.owner,
            gone=snapshot.gone,
            snapshot=whole,
            entry=entry,
        )
        self._meet_all()
        outcome = await self._commits[self._shard_of(snapshot.id)].ask(commit)
        if outcome == STALE:
            raise ConflictError(f"Session {snapshot.id[:8]}… has moved on, or another replica has taken it over.")
        if outcome == OVER_BUDGET:
            raise _over_budget()
        return snapshot

    async def newest(self, id: str, known: Snapshot | None = None, *, take: bool = False) -> Snapshot:
        version = known.version if known is not None else 0
        self._meet_all()
        loaded = await self._loads[self._shard_of(id)].ask((id, version, take))
        if loaded is None:
            return replace(await self._before.newest(id), journaled=0)
        if loaded.gone is not None:
            return _tombstone(id, loaded)
        if loaded.snapshot is None:
            assert known is not None
            return replace(known, epoch=loaded.epoch)
        return replace(await self._rebuilt(loaded), epoch=loaded.epoch)

    async def tend(self, ttl_s: float, now_s: float) -> int:
        """The shards do it."""
        return await self._before.tend(ttl_s, now_s)

    async def close(self) -> None:
        """A replica that leaves has everything written to the store: it may be the last one, and the cluster end next."""
        flushing = [asyncio.wait_for(shard.flush(), LEAVING_S) for shard in self._shards]
        for failure in await asyncio.gather(*flushing, return_exceptions=True):
            if failure is not None:
                log.warning("A shard was not flushed while this replica left: %r", failure)
        await self._before.close()

    def _meet_all(self) -> None:
        """With the first session, see that every shard is known, whichever the next sessions are in."""
        if self._meeting is None:
            self._meeting = asyncio.gather(*(shard.meet() for shard in self._shards), return_exceptions=True)

    def _shard_of(self, id: str) -> int:
        return int.from_bytes(hashlib.sha256(id.encode()).digest()[:8], "little") % len(self._commits)

    async def _rebuilt(self, loaded: Loaded) -> Snapshot:
        """The snapshot with its journal replayed."""
        assert loaded.snapshot is not None
        base = from_bytes(loaded.snapshot, self._replica.layout, self._replica.digest)
        if not loaded.journal:
            return base
        entries = [from_entry(entry) for entry in loaded.journal]
        inputs = np.concatenate([consumed for _, consumed in entries])
        newest = replace(entries[-1][0], history=self._replica.histories.after(base.history, inputs))
        if base.digest != self._replica.digest:
            return newest
        state = await self._replica.replay(base.state, inputs)
        trail = base.trail.after(inputs, state, self._replica.trace_steps) if base.trail is not None else None
        return replace(newest, state=state, trail=trail, journaled=len(inputs))


class _Batches(Generic[Item, Answer]):
    """Gathers what is asked while earlier calls are under way, and asks again what a lost shard did not answer."""

    def __init__(self, call: Callable[[list[Item]], Awaitable[list[Answer]]]) -> None:
        self._call = call
        self._waiting: list[tuple[Item, asyncio.Future[Answer]]] = []
        self._running: set[asyncio.Task[None]] = set()

    async def ask(self, item: Item) -> Answer:
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, future))
        if len(self._running) < IN_FLIGHT:
            task = asyncio.create_task(self._run())
            self._running.add(task)
            task.add_done_callback(self._running.discard)
        return await future

    async def _run(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting, []
            (answers,) = await asyncio.gather(self._insist([item for item, _ in batch]), return_exceptions=True)
            if isinstance(answers, BaseException):  # whatever it was, each of those who wait must hear it
                for _, future in batch:
                    if not future.done():
                        future.set_exception(answers)
                continue
            for (_, future), answer in zip(batch, answers, strict=True):
                if not future.done():
                    future.set_result(answer)

    async def _insist(self, items: list[Item]) -> list[Answer]:
        until_s = time.monotonic() + PATIENCE_S
        while True:
            try:
                return await self._call(items)
            except ShardLostError as exc:
                if time.monotonic() > until_s:
                    raise UnreachableError(
                        f"A shard of the vault has been away for {PATIENCE_S:g} s ({exc}). See the cluster's log."
                    ) from exc
                await asyncio.sleep(PAUSE_S)


def _tombstone(id: str, loaded: Loaded) -> Snapshot:
    gone: Literal["expired", "deleted"] = "expired" if loaded.gone == "expired" else "deleted"
    return Snapshot(
        id=id,
        model="",
        digest="",
        version=loaded.version,
        step=0,
        epoch=loaded.epoch,
        created_s=0.0,
        used_s=loaded.expires_s,
        pending=(),
        context=None,
        state=b"",
        gone=gone,
    )


def _over_budget() -> RequestError:
    return RequestError(
        "The live sessions of this key have reached their bytes (serve.sessions.bytes_per_key). Delete some with "
        "DELETE /v1/sessions/{id}, or wait until they expire.",
        status=429,
        code="session_budget",
        retry_after_s=60.0,
    )
