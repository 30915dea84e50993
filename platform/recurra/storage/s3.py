"""An S3-compatible store. The only file that imports an S3 client; its own retries are off, ours are in retry.py."""

from __future__ import annotations

import contextlib
import os
import threading
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NoReturn, TypeVar
from urllib.parse import urlsplit

import boto3.session
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ChecksumError,
    ClientError,
    CredentialRetrievalError,
    HTTPClientError,
    IncompleteReadError,
    NoCredentialsError,
    PartialCredentialsError,
    SSLError,
    TokenRetrievalError,
)
from botocore.exceptions import ConnectionError as BotoConnectionError
from botocore.parsers import ResponseParserError
from urllib3.exceptions import HTTPError

from recurra.config.env import S3Settings
from recurra.errors import ConfigError, ConflictError, CredentialsError, NotFoundError, StorageError
from recurra.storage.answers import Answer, Place, meaning
from recurra.storage.keys import HIDDEN, check_key, is_hidden, join
from recurra.storage.reading import Reading
from recurra.storage.retry import DEFAULT_POLICY, Retry, RetryPolicy, TransientError
from recurra.storage.store import ObjectInfo, Store

T = TypeVar("T")

LARGEST_BYTES = 5 << 30
"""Of one object: S3's limit for a write in one request, which is what makes it atomic and conditional."""
PAGE_KEYS = 1000
"""Names in one answer to a listing; no store gives more."""
_TRANSIENT = (
    BotoConnectionError,
    HTTPClientError,
    IncompleteReadError,
    ChecksumError,
    ResponseParserError,
    HTTPError,
    OSError,
)


@dataclass
class Connection:
    """A client and what is known about the store that it talks to; shared by all stores of a process."""

    client: Any
    retry: Retry
    endpoint: str
    honest_buckets: set[str] = field(default_factory=set)
    """Buckets that were seen to refuse a second `If-None-Match: *`."""


_connections: dict[tuple[int, S3Settings, RetryPolicy], Connection] = {}
_lock = threading.Lock()


def connect(settings: S3Settings, policy: RetryPolicy = DEFAULT_POLICY) -> Connection:
    """This process's connection to a store; after a fork the child gets one of its own."""
    key = (os.getpid(), settings, policy)
    with _lock:
        if key not in _connections:
            for stale in [other for other in _connections if other[0] != key[0]]:
                del _connections[stale]
            _connections[key] = _new_connection(settings, policy)
        return _connections[key]


def _new_lock_after_fork() -> None:
    global _lock
    _lock = threading.Lock()


os.register_at_fork(after_in_child=_new_lock_after_fork)


def _new_connection(settings: S3Settings, policy: RetryPolicy) -> Connection:
    host = urlsplit(settings.endpoint_url or "").hostname or ""
    on_aws = settings.endpoint_url is None or host.endswith((".amazonaws.com", ".amazonaws.com.cn"))
    # Other stores refuse, ignore or mangle the checksum trailers that boto3 sends by default.
    elsewhere: dict[str, Any] = {
        "request_checksum_calculation": "when_required",
        "response_checksum_validation": "when_required",
        "s3": {"addressing_style": "path"},
    }
    if host in ("127.0.0.1", "localhost", "::1"):
        elsewhere["proxies"] = {}
    config = Config(
        signature_version="s3v4",
        connect_timeout=policy.connect_timeout_s,
        read_timeout=policy.read_timeout_s,
        max_pool_connections=32,
        retries={"total_max_attempts": 1, "mode": "standard"},
        **({} if on_aws else elsewhere),
    )
    try:
        client = boto3.session.Session().client(
            "s3",
            endpoint_url=settings.endpoint_url,
            region_name=settings.region,
            aws_access_key_id=settings.access_key,
            aws_secret_access_key=settings.secret_key,
            aws_session_token=settings.session_token,
            config=config,
        )
    except PartialCredentialsError as exc:
        raise _no_credentials(exc) from exc
    except (ValueError, BotoCoreError) as exc:
        raise ConfigError(
            f"AWS_ENDPOINT_URL is {settings.endpoint_url!r} and AWS_REGION {settings.region!r}: {exc}. "
            "Write an address such as http://127.0.0.1:8333 and a region such as us-east-1."
        ) from exc
    return Connection(client, Retry(policy), settings.endpoint_url or "AWS")


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
        """Try until it works or the deadline passes; everything that leaves here is one of our errors."""
        return self._connection.retry.run(
            lambda: self._once(full, attempt), f"{verb} {self._place(full)} at {self._connection.endpoint}", reached
        )

    def _once(self, full: str, call: Callable[[], T]) -> T:
        try:
            return call()
        except (ClientError, BotoCoreError, HTTPError, OSError) as exc:
            raise _translated(exc, self._place(full)) from exc


def _body(data: bytes | memoryview) -> bytes:
    if len(data) > LARGEST_BYTES:
        raise StorageError(f"{len(data)} bytes are too many for one object. Split them into pieces of at most 5 GiB.")
    return data if isinstance(data, bytes) else bytes(data)


def _translated(exc: Exception, place: Place) -> Exception:
    if isinstance(exc, ClientError):
        error, metadata = exc.response.get("Error", {}), exc.response.get("ResponseMetadata", {})
        waits = metadata.get("HTTPHeaders", {}).get("retry-after", "")
        answer = Answer(
            status=metadata.get("HTTPStatusCode", 0),
            code=error.get("Code", ""),
            message=error.get("Message", ""),
            retry_after_s=float(waits) if waits.isdigit() else 0.0,
        )
        return meaning(answer, place)
    if isinstance(exc, NoCredentialsError | PartialCredentialsError | CredentialRetrievalError | TokenRetrievalError):
        return _no_credentials(exc)
    if isinstance(exc, SSLError) and any(word in str(exc) for word in ("CERTIFICATE", "WRONG_VERSION")):
        return ConfigError(
            f"{place.endpoint} cannot be trusted: {exc}. Set AWS_CA_BUNDLE to the file of its certificate authority, "
            "or write http:// in AWS_ENDPOINT_URL if it does not use TLS."
        )
    if isinstance(exc, _TRANSIENT):
        return TransientError(str(exc))
    return ConfigError(f"The S3 client refuses {place}: {exc}. Check the address and the AWS_ variables.")


def _no_credentials(exc: Exception) -> CredentialsError:
    return CredentialsError(
        f"There are no credentials for the object store ({exc}). "
        "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or give this machine a role."
    )
