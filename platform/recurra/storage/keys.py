"""What a key may look like, in every store alike, so that a dataset can move from a directory to S3 and back."""

from __future__ import annotations

from recurra.errors import ConfigError

HIDDEN = ".recurra-"
"""Files and objects whose name starts so are ours for a moment (half-written, probes) and are never listed."""


def check_key(key: str) -> str:
    """The key itself.

    Raises:
        ConfigError: It is empty, absolute, longer than 1024 bytes, or has an empty, '.' or '..' part.
    """
    parts = key.split("/")
    if any(part in ("", ".", "..") for part in parts) or not key.isprintable() or len(key.encode()) > 1024:
        raise ConfigError(
            f"{key!r} is not a key of an object. Write names joined by single slashes, such as 'shards/00001.arrow'."
        )
    return key


def is_hidden(key: str) -> bool:
    """Whether the last part of the key is a name that listings leave out."""
    return key.rpartition("/")[2].startswith(HIDDEN)


def join(prefix: str, key: str) -> str:
    """`prefix/key`, or the one of them that is not empty."""
    return f"{prefix}/{key}" if prefix and key else prefix or key
