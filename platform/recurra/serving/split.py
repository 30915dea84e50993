"""Which share of what comes a candidate gets: a pure function of a key, so that every replica decides the same."""

from __future__ import annotations

import hashlib
import secrets

_SALT = b"recurra-canary"
"""Shards of the vault are chosen by a hash of the same ids."""


def place_of(key: str) -> float:
    """Where a key lies in [0, 1), evenly for many keys."""
    digest = hashlib.blake2b(key.encode(), digest_size=8, key=_SALT).digest()
    return int.from_bytes(digest, "little") / 2**64


def takes_candidate(key: str | None, share: float) -> bool:
    """Whether a key belongs to the candidate; with a larger share it still does.

    Args:
        key: A session's id or a request's; None = one that nobody repeats.
        share: Of all keys, in [0, 1].
    """
    if share <= 0.0:
        return False
    return place_of(secrets.token_hex(8) if key is None else key) < share
