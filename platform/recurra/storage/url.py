"""An address becomes a store: `s3://bucket/prefix` or `file:///dir`."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import unquote

from recurra.config.env import s3_settings
from recurra.errors import ConfigError
from recurra.storage.keys import check_key
from recurra.storage.local import LocalStore
from recurra.storage.s3 import S3Store
from recurra.storage.store import Store

_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")


def open_store(url: str) -> Store:
    """The store at an address; opening it does not contact anybody.

    Args:
        url: `s3://bucket`, `s3://bucket/prefix` or `file:///absolute/directory`. S3 endpoint and credentials come
            from the environment (`AWS_ENDPOINT_URL`, `AWS_ACCESS_KEY_ID`, ...); all stores of one process that use
            the same ones share a client.

    Raises:
        ConfigError: It is no such address.
    """
    check_url(url)
    if url.startswith("s3://"):
        return S3Store(s3_settings(), *split_s3(url))
    return LocalStore(Path(unquote(url.removeprefix("file://"))))


def check_url(url: str) -> str:
    """The address itself; nobody is contacted, and credentials need not be there.

    Raises:
        ConfigError: It is no address of a store.
    """
    scheme, separator, rest = url.partition("://")
    if separator and scheme == "s3":
        split_s3(url)
    elif separator and scheme == "file":
        if not rest.startswith("/"):
            raise ConfigError(f"{url} names no absolute directory. Write three slashes: file:///{rest}.")
    else:
        raise ConfigError(f"{url!r} is no address of a store. Write s3://bucket/prefix or file:///absolute/directory.")
    return url


def split_s3(url: str) -> tuple[str, str]:
    """Bucket and prefix of an `s3://` address; the prefix may be empty.

    Raises:
        ConfigError: No store would accept the bucket's name, or the prefix has an empty part.
    """
    bucket, _, prefix = url.removeprefix("s3://").partition("/")
    if not _BUCKET.fullmatch(bucket):
        raise ConfigError(
            f"{url}: {bucket!r} is no name of a bucket. Use 3 to 63 lower-case letters, digits, dots and hyphens."
        )
    prefix = prefix.strip("/")
    return bucket, check_key(prefix) if prefix else ""
