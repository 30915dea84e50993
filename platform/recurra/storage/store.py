"""The object store as everything above sees it: read, write, create, list, delete, and nothing else."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class ObjectInfo:
    """One object of a listing."""

    key: str
    """Relative to the store's own prefix."""
    size_bytes: int
    modified_s: float
    """Seconds since 1970, by the store's clock."""


class Store(ABC):
    """A prefix of an object store. Keys are relative to it, use '/', and never start with one.

    Every method raises the `StorageError` family: `NotFoundError` for a missing bucket or object,
    `CredentialsError`, `UnreachableError` once the deadline of the retry loop has passed. Methods may be
    called from any thread. A store is never pickled: send its `url` and call `open_store` there.
    """

    url: str
    """`s3://bucket/prefix` or `file:///dir`, without a trailing slash."""

    @abstractmethod
    def read(self, key: str, start: int = 0, length: int | None = None) -> bytes:
        """The object's bytes, or `length` of them from `start` (one range request, retried)."""

    @abstractmethod
    def write(self, key: str, data: bytes | memoryview) -> None:
        """Put the object, replacing what is there. It is visible whole or not at all."""

    @abstractmethod
    def create(self, key: str, data: bytes) -> None:
        """Put the object only if no object has this key.

        Raises:
            ConflictError: Somebody else's object is there. Our own write whose answer was lost counts as success.
        """

    @abstractmethod
    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """Objects whose key starts with `prefix`, in key order."""

    @abstractmethod
    def size(self, key: str) -> int:
        """The object's bytes, without reading it."""

    @abstractmethod
    def delete(self, key: str) -> None:
        """Remove the object; one that is already gone is fine."""

    @abstractmethod
    def child(self, prefix: str) -> Store:
        """The store of a longer prefix."""

    @abstractmethod
    def close(self) -> None:
        """Close connections; the store is not used afterwards."""

    def exists(self, key: str) -> bool:
        """Whether the object is there."""
        return any(info.key == key for info in self.list(key))
