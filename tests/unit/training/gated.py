"""A real store whose writes wait, or fail, when a test says so."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

from recurra.storage.store import ObjectInfo, Store


class GatedStore(Store):
    """Passes everything on to `inner`; before each write and creation `open` is waited for and `check` called.

    Args:
        inner: Where bytes go.
        check: Told each key that is about to be written; may raise.
    """

    def __init__(self, inner: Store, check: Callable[[str], None] = lambda key: None) -> None:
        self.url = inner.url
        self.open = threading.Event()
        self.open.set()
        self.written: list[str] = []
        self._inner = inner
        self._check = check

    def open_in(self, seconds: float) -> None:
        """Let writes pass after so long."""
        self.open.clear()
        threading.Timer(seconds, self.open.set).start()

    def read(self, key: str, start: int = 0, length: int | None = None) -> bytes:
        return self._inner.read(key, start, length)

    def write(self, key: str, data: bytes | memoryview) -> None:
        self._pass(key)
        self._inner.write(key, data)

    def create(self, key: str, data: bytes) -> None:
        self._pass(key)
        self._inner.create(key, data)

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        return self._inner.list(prefix)

    def size(self, key: str) -> int:
        return self._inner.size(key)

    def delete(self, key: str) -> None:
        self._inner.delete(key)

    def child(self, prefix: str) -> Store:
        return self._inner.child(prefix)

    def close(self) -> None:
        self._inner.close()

    def _pass(self, key: str) -> None:
        assert self.open.wait(timeout=60)
        self._check(key)
        self.written.append(key)
