"""One object, or a range of it, read over as many attempts as it takes: each goes on where the last one broke off."""

from __future__ import annotations

from typing import Any, Protocol

from recurra.errors import ConflictError, StorageError
from recurra.storage.retry import TransientError

_CHUNK_BYTES = 4 << 20
_CAREFUL_CHUNK_BYTES = 64 << 10
"""After a failure: a chunk that breaks off is lost, so small ones make progress over a bad line."""


class OutsideRangeError(StorageError):
    """The range starts behind the last byte (HTTP 416)."""


class Get(Protocol):
    """One GET of the object; raises our errors, `ConflictError` when `IfMatch` does not hold."""

    def __call__(self, **request: str) -> dict[str, Any]: ...


class Reading:
    """State of one read. `attempt` is for the retry loop."""

    def __init__(self, get: Get, start: int, length: int | None) -> None:
        self._get = get
        self._start = start
        self._length = length
        self._chunks: list[bytes] = []
        self._etag = ""
        self._chunk_bytes = _CHUNK_BYTES
        self.received = 0
        """Bytes that are in hand for good."""

    def attempt(self) -> bytes:
        """The bytes asked for: fewer than `length` only where the object ends.

        Raises:
            TransientError: The answer broke off, or the object was replaced half-way.
        """
        request = self._request()
        try:
            answer = self._get(**request)
        except OutsideRangeError:
            if self.received:
                self._forget()
                raise TransientError("the object became shorter while it was read", answered=True) from None
            return b""
        except ConflictError:
            self._forget()
            raise TransientError("the object was replaced while it was read", answered=True) from None
        chunk_bytes, self._chunk_bytes = self._chunk_bytes, _CAREFUL_CHUNK_BYTES
        if "Range" in request and "ContentRange" not in answer:
            return self._cut(answer["Body"].read())
        self._etag = answer.get("ETag", "")
        self._receive(answer["Body"], answer["ContentLength"], chunk_bytes)
        return self._chunks[0] if len(self._chunks) == 1 else b"".join(self._chunks)

    def _request(self) -> dict[str, str]:
        first = self._start + self.received
        last = "" if self._length is None else self._start + self._length - 1
        request = {"Range": f"bytes={first}-{last}"} if first or self._length is not None else {}
        if self.received and self._etag:
            request["IfMatch"] = self._etag
        return request

    def _receive(self, body: Any, missing: int, chunk_bytes: int) -> None:
        while missing:
            chunk = body.read(min(missing, chunk_bytes))
            if not chunk:
                raise TransientError(f"the answer ended {missing} bytes early", answered=True)
            self._chunks.append(chunk)
            self.received += len(chunk)
            missing -= len(chunk)

    def _cut(self, whole: bytes) -> bytes:
        """What was asked for, of a store that does not know ranges and sent everything."""
        return whole[self._start : None if self._length is None else self._start + self._length]

    def _forget(self) -> None:
        self._chunks.clear()
        self._etag = ""
        self.received = 0
