"""The vault in the object store: segments that hold many sessions each, one for every flush of a shard.

One object for all that has changed costs one request, where an object for each session would cost thousands. A segment
is never changed; it is deleted once all of its records have newer versions elsewhere.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from recurra.errors import ConflictError, NotFoundError
from recurra.serving.vault_record import Place, Record, cold_record, header_of, pack
from recurra.storage.store import Store

SHARDS = "shards.json"
HEAD_GUESS = 64 << 10
"""Bytes read of a segment at first; enough for the heads of most."""


def agreed_shards(store: Store, wanted: int) -> int:
    """How many shards the vault has: what the first one wrote down. Sessions are spread over them by hash."""
    try:
        store.create(SHARDS, json.dumps({"shards": wanted}).encode())
    except ConflictError:
        return int(json.loads(store.read(SHARDS))["shards"])
    return wanted


@dataclass
class _Segment:
    size: int
    live: int


class VaultLog:
    """The segments of one shard. Blocking; one call at a time.

    Args:
        store: Prefix of the vault of one model.
        shard: Index.
    """

    def __init__(self, store: Store, shard: int) -> None:
        self._store = store
        self._prefix = f"{shard:03d}/"
        self._next = 1
        self._segments: dict[str, _Segment] = {}

    def open(self) -> dict[str, Record]:
        """The newest record of each session, cold."""
        found: dict[str, Record] = {}
        for info in self._store.list(self._prefix):
            self._next = int(info.key.removeprefix(self._prefix).partition(".")[0]) + 1
            self._segments[info.key] = _Segment(info.size_bytes, 0)
            for record in self._heads(info.key):
                before = found.get(record.id)
                if before is None or record.version >= before.version:
                    found[record.id] = record
        for record in found.values():
            self._count(record.place, 1)
        return found

    def append(self, records: list[Record]) -> list[Place]:
        """Write the records as they are now; each must be in memory. Returns where they lie."""
        headers = [header_of(record) for record in records]
        bodies = [b"".join([record.snapshot or b"", *record.journal]) for record in records]
        data = pack(headers, bodies)
        key = self._create(data)
        self._segments[key] = _Segment(len(data), len(records))
        start = len(data) - sum(map(len, bodies))
        places = []
        for header, body in zip(headers, bodies, strict=True):
            places.append(Place(key, start, tuple(header["parts"])))
            start += len(body)
        return places

    def read(self, place: Place) -> list[bytes]:
        """The snapshot and the entries of a record."""
        data = self._store.read(place.segment, place.start, place.length) if place.length else b""
        parts, start = [], 0
        for length in place.parts:
            parts.append(data[start : start + length])
            start += length
        return parts

    def drop(self, place: Place | None) -> None:
        """A record's bytes are of no use any more."""
        self._count(place, -1)

    def clear(self) -> int:
        """Delete segments without a live record. Returns how many."""
        dead = [key for key, segment in self._segments.items() if segment.live <= 0]
        for key in dead:
            self._store.delete(key)
            del self._segments[key]
        return len(dead)

    def oldest(self, beyond: int) -> str | None:
        """The segment to be written anew, where there are more than `beyond`."""
        return min(self._segments) if len(self._segments) > beyond else None

    def _create(self, data: bytes) -> str:
        while True:
            key = f"{self._prefix}{self._next:016d}.segment"
            self._next += 1
            try:
                self._store.create(key, data)
            except ConflictError:  # an earlier process of this shard wrote it while it was dying
                continue
            return key

    def _heads(self, key: str) -> list[Record]:
        try:
            data = self._store.read(key, 0, HEAD_GUESS)
            end = 8 + int.from_bytes(data[:8], "little")
            if end > len(data):
                data += self._store.read(key, len(data), end - len(data))
        except NotFoundError:
            if self._store.exists(key):  # the store cannot find its bytes just now: to go on would be to lose them
                raise
            return []  # cleared away since it was listed
        records, start = [], end
        for header in json.loads(data[8:end]):
            record = cold_record(header, key, start)
            records.append(record)
            start += record.place.length if record.place else 0
        return records

    def _count(self, place: Place | None, change: int) -> None:
        if place is not None and place.segment in self._segments:
            self._segments[place.segment].live += change
