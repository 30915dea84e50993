"""Versions of sessions in the object store: one object each, created once, never overwritten.

The key is the compare-and-set: version n + 1 is created with If-None-Match, so of two replicas that both go on from
version n one gets ConflictError and has lost nothing but time. A replaced version stays for `keep_s`, longer than any
replica trusts its own copy: one that still believes in version n must find n + 1 in its way, not a gap.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from threading import Lock

from recurra.errors import NotFoundError
from recurra.serving.slots import StateLayout
from recurra.serving.snapshot import Snapshot, from_bytes, to_bytes
from recurra.storage.store import Store

VERSION_DIGITS = 12


class SessionStore:
    """Blocking; called from a pool of threads.

    Args:
        store: The prefix of one model's sessions.
        layout: Of the model's state.
        digest: Of the bundle that it belongs to; of another one's sessions only the facts are read.
        keep_s: Seconds that a replaced version stays.
        clock: Seconds, monotonic.
    """

    def __init__(
        self,
        store: Store,
        layout: StateLayout,
        digest: str,
        keep_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._layout = layout
        self._digest = digest
        self._keep_s = keep_s
        self._clock = clock
        self._replaced: deque[tuple[float, str]] = deque()
        self._lock = Lock()

    def add(self, snapshot: Snapshot) -> None:
        """Write a version.

        Raises:
            ConflictError: Another replica wrote this version first.
        """
        self._store.create(_key(snapshot.id, snapshot.version), to_bytes(snapshot, self._layout))
        if snapshot.version > 1:
            self._replace(_key(snapshot.id, snapshot.version - 1))

    def newest(self, id: str, known: Snapshot | None = None) -> Snapshot:
        """The newest version; `known` itself when there is none after it.

        Raises:
            NotFoundError: There is no such session.
        """
        keys = [info.key for info in self._store.list(f"{id}/")]
        if not keys:
            raise NotFoundError(f"There is no session {id}.")
        for key in keys[:-1]:
            self._replace(key)
        if known is not None and keys[-1] == _key(id, known.version):
            return known
        return from_bytes(self._store.read(keys[-1]), self._layout, self._digest)

    def prune(self) -> int:
        """Delete replaced versions whose time has come. Returns how many."""
        count = 0
        while True:
            with self._lock:
                if not self._replaced or self._replaced[0][0] > self._clock():
                    return count
                _, key = self._replaced.popleft()
            self._store.delete(key)
            count += 1

    def idle(self, older_than_s: float, now_s: float) -> Iterator[str]:
        """Ids of sessions whose newest version is older than that, by the store's clock."""
        newest: tuple[str, float] | None = None
        for info in self._store.list(""):
            id = info.key.partition("/")[0]
            if newest is not None and newest[0] != id and now_s - newest[1] > older_than_s:
                yield newest[0]
            newest = (id, info.modified_s)
        if newest is not None and now_s - newest[1] > older_than_s:
            yield newest[0]

    def erase(self, id: str) -> None:
        """Delete every version."""
        for info in list(self._store.list(f"{id}/")):
            self._store.delete(info.key)

    def _replace(self, key: str) -> None:
        with self._lock:
            self._replaced.append((self._clock() + self._keep_s, key))


def _key(id: str, version: int) -> str:
    return f"{id}/{version:0{VERSION_DIGITS}d}.safetensors"
