"""One shard of the vault: the newest versions of its share of the sessions, compared and set in one place.

A commit is acknowledged when it is in two places: here and in the next shard, which keeps a copy until it is in the
log; or, while the next shard is away, here and in the log. So any one process may die, and nothing acknowledged is
lost; a shard that starts anew takes what the log lacks from its copies. Both dying at once can lose what was not
flushed yet: `flush_s` bounds it. No Ray, no torch, no HTTP here.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from recurra.errors import NotFoundError, StorageError
from recurra.serving.vault_copies import Copies, NextShard, Peer, ShardLostError, Whole
from recurra.serving.vault_log import VaultLog
from recurra.serving.vault_record import Commit, Loaded, Place, Record, record_of

log = logging.getLogger(__name__)

STORED = "stored"
STALE = "stale"
OVER_BUDGET = "over_budget"
MOST_SEGMENTS = 64
TOMBSTONE_S = 3600.0
RECOVERY_S = 10.0
"""Seconds to wait for the next shard's copies before the log alone must do."""


@dataclass(frozen=True)
class ShardOptions:
    """How a shard behaves."""

    flush_s: float = 5.0
    """Within so many seconds everything acknowledged is in the log."""
    memory_bytes: int = 256 << 20
    """Of states in memory; beyond it, those that are in the log are dropped, least recently used first."""
    bytes_per_key: int | None = None
    """Of sessions of one owner, in this shard."""


class VaultShard:
    """Runs on one event loop.

    Args:
        log: Of this shard.
        index: Of this shard.
        before: The shard whose copies are kept here; None = there is no other.
        after: The shard that keeps copies of this one.
        options: Bounds.
        wall: Seconds since 1970.
    """

    def __init__(
        self,
        index: int,
        log: VaultLog,
        before: Peer | None,
        after: Peer | None,
        options: ShardOptions,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.index = index
        self._log = log
        self._before = before
        self._next = NextShard(index, after) if after is not None else None
        self._options = options
        self._wall = wall
        self._records: OrderedDict[str, Record] = OrderedDict()
        self._copies = Copies()
        self._dirty: set[str] = set()
        self._bytes = 0
        self._owned: Counter[str] = Counter()
        self._flushing = asyncio.Lock()
        self._ready = asyncio.Event()
        self.settled = asyncio.Event()
        """What the death of this shard's predecessor left in one place is in two again; see `settle`."""

    # Called by replicas.

    async def commit(self, commits: list[Commit]) -> list[str]:
        """`STORED`, `STALE` or `OVER_BUDGET` for each; what is stored survives this process.

        Raises:
            StorageError: Neither the next shard nor the store took it. Nothing is acknowledged; send it again.
        """
        await self._ready.wait()
        outcomes, accepted = [], []
        for commit in commits:
            if commit.entry is not None:
                await self._warm(commit.id)
            outcome = self._decide(commit)
            outcomes.append(outcome)
            if outcome == STORED:
                accepted.append(commit)
        if accepted:
            await self._secure(accepted)
            self._evict()
        return outcomes

    async def load(self, wanted: list[tuple[str, int, bool]]) -> list[Loaded | None]:
        """The newest versions of sessions.

        Args:
            wanted: Id, the version that the replica has (0 = none), and whether it takes the session over.
        """
        await self._ready.wait()
        return [await self._load(*item) for item in wanted]

    # Called by other shards.

    async def backup(self, shard: int, commits: list[Commit], flushed: list[tuple[str, int]]) -> list[str]:
        """See `Peer`."""
        return self._copies.keep(commits, flushed)

    async def backup_whole(self, shard: int, records: list[Whole]) -> None:
        """See `Peer`."""
        self._copies.keep_whole(records)

    async def copies(self, shard: int) -> list[Whole]:
        """See `Peer`. Answered also before this shard itself is ready: two may start at once."""
        return self._copies.all()

    async def flush(self) -> None:
        """Write everything that has changed to the log. The next shard asks for it when it has come back."""
        await self._ready.wait()
        if self._next is not None:
            self._next.is_back()
        async with self._flushing:
            await self._flush_locked()

    # Life.

    async def start(self) -> None:
        """Take up what the log and the copies hold, then answer. After an error it can be started again."""
        records = OrderedDict(await asyncio.to_thread(self._log.open))
        for commit, journal in await self._recover_copies():
            record = records.get(commit.id)
            if record is None or commit.version > record.version:
                newer = record_of(commit, journal)
                if record is not None:
                    newer.place, newer.flushed = record.place, record.flushed
                records[commit.id] = newer
                self._dirty.add(commit.id)
        for record in records.values():
            self._account(record, 1)
        self._records = records
        self._ready.set()

    async def settle(self) -> None:
        """Have in two places what our predecessor's death has left in one: its own records, and those it kept copies of.

        Raises:
            StorageError: Of the log or of the shard before. Do it again: until then another death can lose something.
        """
        if self._dirty:
            await self.flush()
        if self._before is not None:
            await self._before.flush()
        self.settled.set()

    async def run(self) -> None:
        """Flush and clear away, for as long as the shard lives."""
        while True:
            await asyncio.sleep(self._options.flush_s / 2)
            try:
                await self.tend()
            except StorageError as exc:
                log.warning("Shard %d could not flush: %s", self.index, exc)

    async def tend(self) -> int:
        """End what has expired, flush, and clear the log. Returns how many sessions expired."""
        expired = self._expire()
        async with self._flushing:
            self._rewrite_oldest()
            await self._flush_locked()
            await asyncio.to_thread(self._log.clear)
        self._evict()
        return expired

    @property
    def held(self) -> dict[str, int]:
        """Counts, for tests and `recurra doctor`."""
        live = sum(record.gone is None for record in self._records.values())
        return {"sessions": live, "copies": len(self._copies), "unflushed": len(self._dirty), "bytes": self._bytes}

    def _decide(self, commit: Commit) -> str:
        record = self._records.get(commit.id)
        if record is None:
            if commit.entry is not None:
                return STALE
            limit = self._options.bytes_per_key
            if limit is not None and self._owned[commit.owner] + len(commit.snapshot or b"") > limit:
                return OVER_BUDGET
            record = self._records[commit.id] = record_of(commit)
            self._account(record, 1)
        elif record.version == commit.version and record.nonce == commit.nonce:
            pass  # a repeat: its first answer was lost
        elif not record.accepts(commit):
            return STALE
        else:
            self._account(record, -1)
            record.apply(commit)
            self._account(record, 1)
        self._records.move_to_end(commit.id)
        self._dirty.add(commit.id)
        return STORED

    async def _load(self, id: str, known: int, take: bool) -> Loaded | None:
        record = self._records.get(id)
        if record is None:
            return None
        if record.gone is None and record.version != known:
            await self._warm(id)
        if take:
            record.epoch += 1
        self._records.move_to_end(id)
        facts = (record.version, record.epoch, record.expires_s, record.gone)
        if record.gone is not None or record.version == known:
            return Loaded(*facts, None)
        return Loaded(*facts, record.snapshot, tuple(record.journal))

    async def _warm(self, id: str) -> None:
        """Read a cold record's bytes."""
        record = self._records.get(id)
        while record is not None and record.cold:
            place = record.place
            assert place is not None
            try:
                snapshot, *journal = await asyncio.to_thread(self._log.read, place)
            except NotFoundError:
                if record.place == place:
                    raise
                continue  # it was written anew, and its old segment is gone
            if record.cold and record.place == place:  # nobody was faster
                self._account(record, -1)
                record.snapshot, record.journal = snapshot, journal
                self._account(record, 1)

    async def _secure(self, commits: list[Commit]) -> None:
        """Have the commits in a second place."""
        if self._next is not None and await self._next.keep(commits, self._wholes):
            return
        wanted = {commit.id: commit.version for commit in commits}
        async with self._flushing:
            # Whoever waited for the lock may find its commits written by the one before.
            if any((record := self._records.get(id)) and record.flushed < version for id, version in wanted.items()):
                await self._flush_locked()

    async def _wholes(self, ids: list[str]) -> list[Whole]:
        for id in ids:
            await self._warm(id)
        return [self._records[id].whole() for id in ids]

    async def _flush_locked(self) -> None:
        ids, self._dirty = self._dirty, set()
        try:
            for id in ids:
                await self._warm(id)
            known = [self._records[id] for id in ids if id in self._records]
            records = [record for record in known if not record.cold]
            self._dirty |= {record.id for record in known if record.cold}  # evicted again meanwhile
            if not records:
                return
            frozen = [record_of(*record.whole()) for record in records]
            places = await asyncio.to_thread(self._log.append, frozen)
        except BaseException:
            self._dirty |= ids
            raise
        for record, copy, place in zip(records, frozen, places, strict=True):
            self._flushed(record, copy.version, place)

    def _flushed(self, record: Record, version: int, place: Place) -> None:
        self._log.drop(record.place)
        record.place, record.flushed = place, version
        if self._next is not None:
            self._next.flushed(record.id, version)
        if record.version != version:
            self._dirty.add(record.id)

    def _expire(self) -> int:
        now_s = self._wall()
        expired = 0
        for record in list(self._records.values()):
            if record.gone is None and now_s > record.expires_s:
                self._account(record, -1)
                record.version, record.gone, record.snapshot, record.journal = record.version + 1, "expired", None, []
                self._account(record, 1)
                self._dirty.add(record.id)
                expired += 1
            elif record.gone is not None and now_s > record.expires_s + TOMBSTONE_S:
                self._account(record, -1)
                self._log.drop(record.place)
                self._dirty.discard(record.id)
                del self._records[record.id]
        return expired

    def _rewrite_oldest(self) -> None:
        """Move what still lives in the oldest segment to the next one, so that segments do not pile up."""
        oldest = self._log.oldest(beyond=MOST_SEGMENTS)
        if oldest is not None:
            self._dirty |= {r.id for r in self._records.values() if r.place is not None and r.place.segment == oldest}

    def _evict(self) -> None:
        if self._bytes <= self._options.memory_bytes:
            return
        for record in self._records.values():
            if record.flushed == record.version and not record.cold and record.gone is None:
                self._account(record, -1)
                record.snapshot, record.journal = None, []
                self._account(record, 1)
                if self._bytes <= self._options.memory_bytes:
                    return

    def _account(self, record: Record, sign: int) -> None:
        self._bytes += sign * record.size_bytes
        if record.gone is None:
            in_log = record.place.length if record.cold and record.place else 0
            self._owned[record.owner] += sign * (record.size_bytes + in_log)

    async def _recover_copies(self) -> list[Whole]:
        if self._next is None:
            return []
        until_s = time.monotonic() + RECOVERY_S
        while True:
            try:
                return await self._next.copies()
            except ShardLostError as exc:
                if time.monotonic() > until_s:
                    log.warning("Shard %d starts from its log alone: %s", self.index, exc)
                    return []
                await asyncio.sleep(0.1)
