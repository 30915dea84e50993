"""Objects that a thread puts into the store one after the other, so that the loop does not wait for it."""

from __future__ import annotations

import threading

from recurra.storage.store import Store


class Outbox:
    """Of each key only the newest content counts: what has not been written when the next comes is never written.

    Args:
        store: Where they go.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._waiting: dict[str, bytes] = {}
        self._error: Exception | None = None
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def put(self, key: str, data: bytes) -> None:
        """Have `data` written under `key`; returns at once."""
        with self._changed:
            self._waiting[key] = data
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="outbox", daemon=True)
                self._thread.start()

    def flush(self) -> None:
        """Return once everything is written.

        Raises:
            StorageError: The store did not take the object that was written last.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._thread is None)
            error, self._error = self._error, None
        if error is not None:
            raise error

    def _work(self) -> None:
        while (found := self._next()) is not None:
            error: Exception | None = None
            try:
                self._store.write(*found)
            except Exception as exc:  # noqa: BLE001 - whoever flushes raises it
                error = exc
            with self._changed:
                self._error = error

    def _next(self) -> tuple[str, bytes] | None:
        """What to write next; None ends the thread, so that a run leaves none behind."""
        with self._changed:
            if self._waiting:
                key = next(iter(self._waiting))
                return key, self._waiting.pop(key)
            self._thread = None
            self._changed.notify_all()
            return None
