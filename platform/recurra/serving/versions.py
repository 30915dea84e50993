"""Where sessions are kept, as `Sessions` sees it: a small interface, and the implementation that needs nothing but a store.

`WriteThrough` has each version in the object store before it is acknowledged. `vault_versions.VaultVersions` has it in two
processes that outlive every replica, and in the store a little later.
"""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from numpy.typing import NDArray

from recurra.errors import ConflictError
from recurra.serving.session_store import SessionStore
from recurra.serving.snapshot import Snapshot

T = TypeVar("T")
POOL_THREADS = 16


class Versions(ABC):
    """Newest versions of sessions. Methods run on one event loop and raise the `StorageError` family."""

    leases: bool
    """Whether a replica must take a session over before it may write it."""

    @abstractmethod
    async def add(self, snapshot: Snapshot, consumed: NDArray[Any] | None = None) -> Snapshot:
        """Keep a version, so that nothing that acknowledges it can be lost.

        Args:
            snapshot: Its version is one above the newest.
            consumed: The inputs that lead here from the version before, if that is how it came.

        Returns:
            The snapshot as it is to be remembered.

        Raises:
            ConflictError: It is not the one that follows the newest version, or another replica has taken over since.
        """

    @abstractmethod
    async def newest(self, id: str, known: Snapshot | None = None, *, take: bool = False) -> Snapshot:
        """The newest version, or `known` where there is none after it.

        Args:
            take: Take the session over: from now on older owners are refused.

        Raises:
            NotFoundError: There is no such session.
        """

    @abstractmethod
    async def tend(self, ttl_s: float, now_s: float) -> int:
        """Clear away what has been replaced or has expired; called about once a second. Returns how many expired."""

    @abstractmethod
    async def close(self) -> None:
        """Whatever was acknowledged stays."""


class WriteThrough(Versions):
    """Each version is an object, created before it is acknowledged.

    Args:
        store: Of this model's sessions.
        clock: Seconds, monotonic.
    """

    leases = False

    def __init__(self, store: SessionStore, clock: Callable[[], float] = time.monotonic) -> None:
        self._store = store
        self._clock = clock
        self._swept_s = clock()
        self._pool = ThreadPoolExecutor(POOL_THREADS, thread_name_prefix="recurra-sessions")

    async def add(self, snapshot: Snapshot, consumed: NDArray[Any] | None = None) -> Snapshot:
        await self._in_pool(lambda: self._store.add(snapshot))
        return snapshot

    async def newest(self, id: str, known: Snapshot | None = None, *, take: bool = False) -> Snapshot:
        return await self._in_pool(lambda: self._store.newest(id, known))

    async def tend(self, ttl_s: float, now_s: float) -> int:
        await self._in_pool(self._store.prune)
        if self._clock() - self._swept_s < min(600.0, max(1.0, ttl_s / 4)):
            return 0
        self._swept_s = self._clock()
        return await self._in_pool(lambda: self.sweep(ttl_s, now_s))

    async def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    def sweep(self, ttl_s: float, now_s: float) -> int:
        """End the sessions that nobody has used, and forget those that ended as long ago. Blocking."""
        count = 0
        for id in self._store.idle(ttl_s, now_s):
            snapshot = self._store.newest(id)
            if snapshot.gone is not None:
                self._store.erase(id)
                continue
            try:
                self._store.add(snapshot.tombstone("expired", now_s))
            except ConflictError:  # it was used just now, or another replica sweeps, too
                continue
            count += 1
        return count

    async def _in_pool(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._pool, work)
