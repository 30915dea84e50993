"""An S3-compatible store: conditional creation, exact reads, listings in key order."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Callable, Iterator
from typing import Any, NoReturn, TypeVar

from recurra.config.env import S3Settings
from recurra.errors import ConfigError, ConflictError, NotFoundError, StorageError
from recurra.storage.answers import Place
from recurra.storage.keys import HIDDEN, check_key, is_hidden, join
from recurra.storage.reading import Reading
from recurra.storage.retry import DEFAULT_POLICY, RetryPolicy
from recurra.storage.s3_client import Connection, connect
from recurra.storage.store import ObjectInfo, Store

T = TypeVar("T")

LARGEST_BYTES = 5 << 30
"""Of one object: S3's limit for a write in one request, which is what makes it atomic and conditional."""
PAGE_KEYS = 1000
"""Names in one answer to a listing; no store gives more."""


class S3Store(Store):
    """A prefix of a bucket."""

    def __init__(
        self, settings: S3Settings, bucket: str, prefix: str = "", policy: RetryPolicy = DEFAULT_POLICY
    ) -> None:
        self._settings = settings
        self._bucket = bucket
        self._prefix = prefix
        self._policy = policy
        self.url = f"s3://{join(bucket, prefix)}"

    def __reduce__(self) -> NoReturn:
        raise TypeError(f"A store is not pickled, since it can reach credentials. Send {self.url} and open it there.")

    def read(self, key: str, start: int = 0, length: int | None = None) -> bytes:
        if length == 0:
            self.size(key)  # S3 has no empty range, but a missing object is an error all the same
            return b""
        full = self._full(key)

        def get(**request: str) -> dict[str, Any]:
            return self._once(full, lambda: self._client.get_object(Bucket=self._bucket, Key=full, **request))

        reading = Reading(get, start, length)
        return self._run("reading", full, reading.attempt, lambda: reading.received)

    def write(self, key: str, data: bytes | memoryview) -> None:
        full, body = self._full(key), _body(data)
        self._run("writing", full, lambda: self._put(full, body))

    def create(self, key: str, data: bytes) -> None:
        full, body = self._full(key), _body(data)
        if self._bucket not in self._connection.honest_buckets:
            self._probe()
        self._create(full, body)

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """As the interface says. The whole listing is fetched first: some stores list folder by folder, not by key."""
        root = self._prefix + "/" if self._prefix else ""
        request: dict[str, Any] = {"Bucket": self._bucket, "Prefix": root + prefix, "MaxKeys": PAGE_KEYS}
        found: list[ObjectInfo] = []
        while True:
            page = self._run("listing", root + prefix, lambda: self._client.list_objects_v2(**request))
            for item in page.get("Contents", ()):
                key = item["Key"].removeprefix(root)
                if not is_hidden(key) and not key.endswith("/"):
                    found.append(ObjectInfo(key, item["Size"], item["LastModified"].timestamp()))
            if not page.get("IsTruncated"):
                break
            request["ContinuationToken"] = page["NextContinuationToken"]
        yield from sorted(found, key=lambda info: info.key.encode())

    def size(self, key: str) -> int:
        full = self._full(key)
        try:
            return int(self._head(full)["ContentLength"])
        except NotFoundError:
            self._require_bucket()
            raise

    def exists(self, key: str) -> bool:
        try:
            self._head(self._full(key))
        except NotFoundError:
            self._require_bucket()
            return False
        return True

    def delete(self, key: str) -> None:
        full = self._full(key)
        try:
            self._run("deleting", full, lambda: self._client.delete_object(Bucket=self._bucket, Key=full))
        except NotFoundError:
            self._require_bucket()

    def child(self, prefix: str) -> S3Store:
        return S3Store(self._settings, self._bucket, join(self._prefix, check_key(prefix.strip("/"))), self._policy)

    def create_bucket(self) -> None:
        """Make the bucket; one that we own already is fine."""
        try:
            self._run("creating the bucket of", "", lambda: self._client.create_bucket(Bucket=self._bucket))
        except ConflictError:
            self._require_bucket()

    def close(self) -> None:
        """Close idle connections; other stores of this process that share them open new ones."""
        self._client.close()

    @property
    def _connection(self) -> Connection:
        return connect(self._settings, self._policy)

    @property
    def _client(self) -> Any:
        return self._connection.client

    def _full(self, key: str) -> str:
        return join(self._prefix, check_key(key))

    def _put(self, full: str, body: bytes, **conditions: Any) -> None:
        self._client.put_object(Bucket=self._bucket, Key=full, Body=body, **conditions)

    def _create(self, full: str, body: bytes) -> None:
        """Conditional write; a refusal after an answer that was lost may be our own object, so it is looked at."""
        writer = uuid.uuid4().hex
        lost_answers = 0

        def attempt() -> None:
            nonlocal lost_answers
            lost_answers += 1
            try:
                self._once(full, lambda: self._put(full, body, IfNoneMatch="*", Metadata={"writer": writer}))
            except ConflictError:
                lost_answers -= 1
                raise

        try:
            self._run("creating", full, attempt)
        except ConflictError:
            if not lost_answers or self._writer(full) != writer:
                raise

    def _writer(self, full: str) -> str | None:
        try:
            writer: str | None = self._head(full).get("Metadata", {}).get("writer")
        except NotFoundError:
            return None
        return writer

    def _probe(self) -> None:
        """See that the store refuses a second creation; once for each process and bucket.

        Raises:
            ConfigError: It does not, so that two writers would overwrite one another unseen.
        """
        full = self._full(f"{HIDDEN}probe-{uuid.uuid4().hex}")
        self._create(full, b"first")
        try:
            self._run("probing", full, lambda: self._put(full, b"second", IfNoneMatch="*"))
        except ConflictError:
            self._connection.honest_buckets.add(self._bucket)
        else:
            raise ConfigError(
                f"{self._connection.endpoint} ignores 'If-None-Match: *' on bucket '{self._bucket}', so writers would "
                "overwrite one another. Set AWS_ENDPOINT_URL to a store with conditional writes (AWS S3, SeaweedFS, "
                "Ceph RGW, MinIO), or use a file:///directory."
            )
        finally:
            # A key that may not delete leaves an object of a few bytes, which listings leave out.
            with contextlib.suppress(StorageError):
                self._run("deleting", full, lambda: self._client.delete_object(Bucket=self._bucket, Key=full))

    def _head(self, full: str) -> dict[str, Any]:
        """Its 404 has no body, so it does not tell whether the object is missing or the bucket."""
        return self._run("looking at", full, lambda: self._client.head_object(Bucket=self._bucket, Key=full))

    def _require_bucket(self) -> None:
        try:
            self._run("looking at", "", lambda: self._client.head_bucket(Bucket=self._bucket))
        except NotFoundError as exc:
            raise self._place("").no_bucket from exc

    def _place(self, full: str) -> Place:
        return Place(self._connection.endpoint, self._bucket, full)

    def _run(self, verb: str, full: str, attempt: Callable[[], T], reached: Callable[[], int] = lambda: 0) -> T:
        return self._connection.run(verb, self._place(full), attempt, reached)

    def _once(self, full: str, call: Callable[[], T]) -> T:
        return self._connection.once(self._place(full), call)


def _body(data: bytes | memoryview) -> bytes:
    size = data.nbytes if isinstance(data, memoryview) else len(data)
    if size > LARGEST_BYTES:
        raise StorageError(f"{size} bytes are too many for one object. Split them into pieces of at most 5 GiB.")
    return data if isinstance(data, bytes) else bytes(data)
