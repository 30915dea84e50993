"""The second place of what a shard acknowledges: the copies that each shard keeps of the one before it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Protocol

from recurra.errors import StorageError
from recurra.serving.vault_record import Commit, Record, record_of

log = logging.getLogger(__name__)

BACKUP_TIMEOUT_S = 1.0
AWAY_S, AWAY_MOST_S = 0.3, 5.0
"""Seconds without a try after the next shard did not answer: on a node that has died each try costs a whole time-out until
the cluster knows of it, so they become rare."""
Whole = tuple[Commit, tuple[bytes, ...]]


class ShardLostError(StorageError):
    """The shard's process does not answer; it is started again meanwhile."""

    code = "shard_lost"


class Peer(Protocol):
    """Another shard. Every method raises `ShardLostError` when it is away."""

    async def backup(self, shard: int, commits: list[Commit], flushed: list[tuple[str, int]]) -> list[str]:
        """Keep copies of commits. Returns ids whose version before is not here: send those whole."""

    async def backup_whole(self, shard: int, records: list[Whole]) -> None:
        """Keep copies of whole records."""

    async def copies(self, shard: int) -> list[Whole]:
        """All copies of a shard's records."""

    async def flush(self) -> None:
        """Write everything to the log."""


class Copies:
    """Those that a shard keeps for the one before it."""

    def __init__(self) -> None:
        self._records: dict[str, Record] = {}

    def __len__(self) -> int:
        return len(self._records)

    def keep(self, commits: list[Commit], flushed: list[tuple[str, int]]) -> list[str]:
        """See `Peer.backup`."""
        gaps = []
        for commit in commits:
            copy = self._records.get(commit.id)
            if commit.entry is None:
                if copy is None or commit.version > copy.version:
                    self._records[commit.id] = record_of(commit)
            elif copy is not None and copy.version == commit.version - 1:
                copy.apply(commit)
            elif copy is None or copy.version < commit.version:
                gaps.append(commit.id)
        for id, version in flushed:
            copy = self._records.get(id)
            if copy is not None and copy.version <= version:
                del self._records[id]
        return gaps

    def keep_whole(self, records: list[Whole]) -> None:
        """See `Peer.backup_whole`."""
        for commit, journal in records:
            copy = self._records.get(commit.id)
            if copy is None or commit.version > copy.version:
                self._records[commit.id] = record_of(commit, journal)

    def all(self) -> list[Whole]:
        """See `Peer.copies`."""
        return [record.whole() for record in self._records.values()]


class NextShard:
    """The shard that keeps the copies, as the one whose copies they are sees it.

    Args:
        index: Of the latter.
        peer: The former.
        clock: Seconds, monotonic.
    """

    def __init__(self, index: int, peer: Peer, clock: Callable[[], float] = time.monotonic) -> None:
        self._index = index
        self._peer = peer
        self._clock = clock
        self._told: list[tuple[str, int]] = []
        """Versions that have reached the log and that it has not been told of."""
        self._away_s = AWAY_S
        self._away_until_s = 0.0

    async def keep(self, commits: list[Commit], whole: Callable[[list[str]], Awaitable[list[Whole]]]) -> bool:
        """Whether the commits are there now.

        Args:
            whole: Gives the records of which it lacks the version before.
        """
        if self._clock() < self._away_until_s:
            return False
        told, self._told = self._told, []
        try:
            async with asyncio.timeout(BACKUP_TIMEOUT_S):
                if gaps := await self._peer.backup(self._index, commits, told):
                    await self._peer.backup_whole(self._index, await whole(gaps))
        except (ShardLostError, TimeoutError):
            self._told = told + self._told
            self._away_until_s = self._clock() + self._away_s
            self._away_s = min(AWAY_MOST_S, 2 * self._away_s)
            log.warning("Shard %d does not reach the next one; it writes to the store at once.", self._index)
            return False
        self._away_s = AWAY_S
        return True

    def flushed(self, id: str, version: int) -> None:
        """The log has this version: its copy is of no use any more."""
        self._told.append((id, version))

    def is_back(self) -> None:
        """It may answer again: do not wait until the next try is due."""
        self._away_until_s, self._away_s = 0.0, AWAY_S

    async def copies(self) -> list[Whole]:
        """What it keeps."""
        return await self._peer.copies(self._index)
