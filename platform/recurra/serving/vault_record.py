"""What the vault keeps of a session, and how it lies in the object store. The vault never looks into a state."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

OVERHEAD_BYTES = 512
"""Roughly what a record takes beside its bytes."""


@dataclass(frozen=True, slots=True)
class Commit:
    """A new version of a session, as a replica sends it."""

    id: str
    version: int
    epoch: int
    """Lease under which it was made."""
    nonce: str
    """Of this commit alone: a repeat is recognised by it."""
    expires_s: float
    """Seconds since 1970 at which the session ends if nobody uses it."""
    owner: str
    """Whose byte budget it counts against."""
    gone: str | None = None
    snapshot: bytes | None = None
    """The whole session; None where `entry` leads to it from the version before."""
    entry: bytes | None = None


@dataclass(frozen=True, slots=True)
class Loaded:
    """What a replica gets to see."""

    version: int
    epoch: int
    expires_s: float
    gone: str | None
    snapshot: bytes | None
    """None where the replica has this version, and when the session is gone."""
    journal: tuple[bytes, ...] = ()
    """Entries after the snapshot, oldest first."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a record's bytes lie in the log."""

    segment: str
    start: int
    parts: tuple[int, ...]
    """Lengths of the snapshot and of each entry."""

    @property
    def length(self) -> int:
        return sum(self.parts)


@dataclass(slots=True)
class Record:
    """The newest version of one session."""

    id: str
    version: int
    epoch: int
    nonce: str
    expires_s: float
    owner: str
    gone: str | None = None
    snapshot: bytes | None = None
    """None when it lies in the log only, or the session is gone."""
    journal: list[bytes] = field(default_factory=list)
    flushed: int = 0
    """Newest version that is in the log."""
    place: Place | None = None

    @property
    def size_bytes(self) -> int:
        """In memory."""
        return len(self.snapshot or b"") + sum(map(len, self.journal)) + OVERHEAD_BYTES

    @property
    def cold(self) -> bool:
        """Whether its bytes are in the log only."""
        return self.snapshot is None and self.gone is None

    def accepts(self, commit: Commit) -> bool:
        """Whether a commit may follow: made under the newest lease, and on the newest version.

        A later version than the next comes from an owner whose last ones were lost here; only a whole one can be taken.
        """
        if commit.epoch < self.epoch or commit.version <= self.version:
            return False
        if commit.version == self.version + 1:
            return commit.entry is None or self.gone is None
        return commit.epoch == self.epoch and commit.entry is None

    def apply(self, commit: Commit) -> None:
        """Make the commit the newest version."""
        self.version, self.epoch, self.nonce = commit.version, commit.epoch, commit.nonce
        self.expires_s, self.owner, self.gone = commit.expires_s, commit.owner, commit.gone
        if commit.entry is not None:
            self.journal.append(commit.entry)
        else:
            self.snapshot, self.journal = commit.snapshot, []

    def whole(self) -> tuple[Commit, tuple[bytes, ...]]:
        """Everything, for a copy elsewhere: a commit of the snapshot, and the entries after it."""
        commit = Commit(
            self.id, self.version, self.epoch, self.nonce, self.expires_s, self.owner, self.gone, self.snapshot
        )
        return commit, tuple(self.journal)


def record_of(commit: Commit, journal: tuple[bytes, ...] = ()) -> Record:
    """A record from its whole."""
    return Record(
        commit.id,
        commit.version,
        commit.epoch,
        commit.nonce,
        commit.expires_s,
        commit.owner,
        commit.gone,
        commit.snapshot,
        list(journal),
    )


def header_of(record: Record) -> dict[str, Any]:
    """Everything but the bytes, as JSON."""
    return {
        "id": record.id,
        "version": record.version,
        "epoch": record.epoch,
        "nonce": record.nonce,
        "expires_s": record.expires_s,
        "owner": record.owner,
        "gone": record.gone,
        "parts": [len(record.snapshot or b""), *map(len, record.journal)],
    }


def cold_record(header: dict[str, Any], segment: str, start: int) -> Record:
    """A record whose bytes lie in the log."""
    facts = dict(header)
    parts = tuple(facts.pop("parts"))
    return Record(**facts, flushed=facts["version"], place=Place(segment, start, parts))


def pack(headers: list[dict[str, Any]], bodies: list[bytes]) -> bytes:
    """A segment: the length of its head (8 bytes), the head as JSON, then the bytes of each record."""
    head = json.dumps(headers).encode()
    return b"".join([len(head).to_bytes(8, "little"), head, *bodies])
