"""Blocks on a local disk, so that the second epoch does not come over the network. A limit holds; what is needed last goes first."""

from __future__ import annotations

import contextlib
import heapq
import math
import os
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from threading import Lock

from recurra.errors import ConfigError

_UNFINISHED = ".unfinished-"
_ABANDONED_S = 3600.0
"""A half-written file of this age belongs to a process that was killed."""


class BlockCache:
    """One directory, which several processes of a machine may share: names are hashes of the content.

    Each process keeps to the limit with the files that it knows of: those it found at the start and those it wrote.
    Whatever is read from here is checked by the reader as if it came from the store. Safe to use from several threads.

    Args:
        directory: Made if it is missing.
        limit_bytes: Bytes of all files that this process knows of.
    """

    def __init__(self, directory: Path, limit_bytes: int) -> None:
        if limit_bytes < 1:
            raise ConfigError(f"The cache's limit is {limit_bytes} bytes. Set it to 1 or more, or leave the cache out.")
        self._directory = directory
        self._limit = limit_bytes
        self._lock = Lock()
        self._sizes: dict[str, int] = {}
        self._next_use: dict[str, float] = {}
        self._last: list[tuple[float, str]] = []
        """Heap of (-next use, name); entries that `_next_use` contradicts are out of date."""
        self.bytes = 0
        self.hits = 0
        self.misses = 0
        self.problem: str | None = None
        """Why nothing is written any more, such as a full disk; reading goes on."""
        self._adopt()

    def read(self, name: str, next_use: float) -> bytes | None:
        """The block, if it is here; `next_use` says when it is needed again after this time.

        Args:
            name: Of the block.
            next_use: In epochs, on the scale of all other calls; `math.inf` = never.
        """
        try:
            data = (self._directory / name).read_bytes()
        except OSError:
            with self._lock:
                self.misses += 1
                self._forget(name)
            return None
        with self._lock:
            self.hits += 1
            self._note(name, len(data), next_use)
        return data

    def write(self, name: str, data: bytes | memoryview, next_use: float) -> None:
        """Keep a block, unless everything here is needed before it."""
        with self._lock:
            if self.problem or name in self._sizes or not self._make_room(len(data), next_use):
                return
            self._note(name, len(data), next_use)  # counted before it is written: other threads keep to the limit, too
        unfinished = self._directory / f"{_UNFINISHED}{uuid.uuid4().hex}"
        try:
            unfinished.write_bytes(data)
            unfinished.replace(self._directory / name)
            with self._lock:
                if name not in self._sizes:  # another thread made room meanwhile
                    self._remove(name)
        except OSError as exc:
            with contextlib.suppress(OSError):
                unfinished.unlink()
            with self._lock:
                self.problem = f"{self._directory}: {exc.strerror or exc}"
                self._forget(name)

    def drop(self, name: str) -> None:
        """Remove a block that turned out to be damaged."""
        with self._lock:
            self._remove(name)

    def expect(self, next_use: Callable[[str], float]) -> None:
        """Say when the blocks that are here already are needed."""
        with self._lock:
            for name, size in list(self._sizes.items()):
                self._note(name, size, next_use(name))

    def _adopt(self) -> None:
        """Take over what an earlier process left, and sweep what it did not finish."""
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            for entry in os.scandir(self._directory):
                status = entry.stat()
                if not entry.name.startswith(_UNFINISHED):
                    self._note(entry.name, status.st_size, math.inf)
                elif time.time() - status.st_mtime > _ABANDONED_S:
                    os.unlink(entry.path)
        except OSError as exc:
            raise ConfigError(
                f"The cache directory {self._directory} cannot be used: {exc.strerror}. Name another one."
            ) from exc
        self._make_room(0, -1.0)

    def _note(self, name: str, size: int, next_use: float) -> None:
        self.bytes += size - self._sizes.get(name, 0)
        self._sizes[name] = size
        self._next_use[name] = next_use
        heapq.heappush(self._last, (-next_use, name))

    def _make_room(self, size: int, next_use: float) -> bool:
        """Remove what is needed later than `next_use`, until `size` fits; False if it does not."""
        while self.bytes + size > self._limit:
            while self._last and self._next_use.get(self._last[0][1]) != -self._last[0][0]:
                heapq.heappop(self._last)
            if not self._last or -self._last[0][0] <= next_use:
                return False
            self._remove(self._last[0][1])
        return True

    def _remove(self, name: str) -> None:
        self._forget(name)
        with contextlib.suppress(OSError):
            (self._directory / name).unlink()

    def _forget(self, name: str) -> None:
        self.bytes -= self._sizes.pop(name, 0)
        self._next_use.pop(name, None)
