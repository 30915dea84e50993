"""One client for each process and store, and what its exceptions mean. The only file that imports boto3."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar
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
from recurra.errors import ConfigError, CredentialsError
from recurra.storage.answers import Answer, Place, meaning
from recurra.storage.retry import DEFAULT_POLICY, Retry, RetryPolicy, TransientError

T = TypeVar("T")

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

    def run(self, verb: str, place: Place, attempt: Callable[[], T], reached: Callable[[], int] = lambda: 0) -> T:
        """Try until it works or the deadline passes; everything that leaves here is one of our errors."""
        what = f"{verb} {place} at {self.endpoint}"
        return self.retry.run(lambda: self.once(place, attempt), what, reached)

    def once(self, place: Place, call: Callable[[], T]) -> T:
        """One call of the client, with its exceptions translated.

        Raises:
            TransientError: Another attempt may cure it.
        """
        try:
            return call()
        except (ClientError, BotoCoreError, HTTPError, OSError) as exc:
            raise _translated(exc, place) from exc


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
        user_agent="recurra",  # the default one is put together anew for each request, a tenth of its time
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
