"""The manifest: written last, it alone makes a dataset exist. Each append is the next number, created once."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recurra.data.schema import SequenceSchema
from recurra.errors import ConflictError, DataError, IntegrityError, NotFoundError, SchemaError
from recurra.storage.store import Store
from recurra.vocabulary import FORMAT_VERSION, Digest

BLOCK = np.dtype(
    [
        ("offset", np.int64),
        ("bytes", np.int64),
        ("crc32", np.uint32),
        ("sequences", np.int64),
        ("steps", np.int64),
        ("continued", np.bool_),
        ("lengths_crc32", np.uint32),
    ]
)
"""One record batch of a shard: its byte range, what it holds, and the checksum of its slice of the side index.
`continued` marks a piece of the sequence that the block before began; such a block counts 0 sequences."""

_MAX_RACES = 1000
_FIELDS = tuple(BLOCK.fields or ())
_NAME = re.compile(r"manifest-(\d{8})\.json")
Blocks = NDArray[np.void]


@dataclass(frozen=True, eq=False)
class Shard:
    """One Arrow IPC file."""

    sha256: str
    bytes: int
    blocks: Blocks
    """Array of `BLOCK`."""

    @property
    def key(self) -> str:
        return f"shards/{self.sha256[:32]}.arrow"


@dataclass(frozen=True, eq=False)
class Segment:
    """What one writer added: shards in order, and the lengths of their sequences as one little-endian array."""

    shards: tuple[Shard, ...]
    lengths_sha256: str
    lengths_dtype: str
    """`uint8`, `uint16` or `uint32`."""

    @property
    def lengths_key(self) -> str:
        return f"lengths/{self.lengths_sha256[:32]}.{self.lengths_dtype}"

    @property
    def sequences(self) -> int:
        return sum(int(shard.blocks["sequences"].sum()) for shard in self.shards)

    def to_json(self) -> dict[str, Any]:
        shards = [
            {"sha256": s.sha256, "bytes": s.bytes, "blocks": {name: s.blocks[name].tolist() for name in _FIELDS}}
            for s in self.shards
        ]
        return {"shards": shards, "lengths_sha256": self.lengths_sha256, "lengths_dtype": self.lengths_dtype}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Segment:
        shards = []
        for item in value["shards"]:
            blocks = np.zeros(len(item["blocks"]["offset"]), BLOCK)
            for name in _FIELDS:
                blocks[name] = item["blocks"][name]
            shards.append(Shard(item["sha256"], item["bytes"], blocks))
        return cls(tuple(shards), value["lengths_sha256"], value["lengths_dtype"])


@dataclass(frozen=True, eq=False)
class Manifest:
    """One version of a dataset."""

    version: int
    """1, 2, ...: how often something was committed."""
    schema: SequenceSchema
    metadata: dict[str, Any]
    segments: tuple[Segment, ...]

    @cached_property
    def digest(self) -> Digest:
        """SHA-256 of the content; two datasets of one digest hold the same sequences in the same order."""
        return Digest(hashlib.sha256(self._body()).hexdigest())

    @cached_property
    def blocks(self) -> Blocks:
        """The blocks of all shards, in order."""
        return np.concatenate([np.zeros(0, BLOCK), *(shard.blocks for shard in self.shards)])

    @cached_property
    def shards(self) -> tuple[Shard, ...]:
        return tuple(shard for segment in self.segments for shard in segment.shards)

    @cached_property
    def sequences(self) -> int:
        return int(self.blocks["sequences"].sum())

    @cached_property
    def steps(self) -> int:
        return int(self.blocks["steps"].sum())

    def to_bytes(self) -> bytes:
        return b'{"manifest":' + self._body() + b',"sha256":"' + self.digest.encode() + b'"}'

    @classmethod
    def from_bytes(cls, data: bytes, name: str) -> Manifest:
        """Read what `to_bytes` wrote.

        Raises:
            IntegrityError: It is torn or altered.
            DataError: Another version of Recurra wrote it.
        """
        try:
            outer = json.loads(data)
            body = outer["manifest"]
            seen = hashlib.sha256(_canonical(body)).hexdigest()
        except (ValueError, KeyError, TypeError) as exc:
            raise IntegrityError(f"{name} is torn: {exc}. Restore it, or write the dataset again.") from exc
        if seen != outer.get("sha256"):
            raise IntegrityError(f"{name} was altered: its content does not match its own SHA-256. Restore it.")
        if body.get("format") != FORMAT_VERSION:
            raise DataError(
                f"{name} has format {body.get('format')}; this Recurra reads {FORMAT_VERSION}. Write the dataset again."
            )
        segments = tuple(Segment.from_json(item) for item in body["segments"])
        return cls(body["version"], SequenceSchema.from_json(body["schema"]), body["metadata"], segments)

    def _body(self) -> bytes:
        return _canonical(
            {
                "format": FORMAT_VERSION,
                "version": self.version,
                "schema": self.schema.to_json(),
                "metadata": self.metadata,
                "segments": [segment.to_json() for segment in self.segments],
            }
        )


def manifest_key(version: int) -> str:
    return f"manifest-{version:08d}.json"


def newest_version(store: Store) -> int:
    """The highest number committed, or 0."""
    found = (_NAME.fullmatch(info.key) for info in store.list("manifest-"))
    return max((int(match[1]) for match in found if match), default=0)


def read_manifest(store: Store, version: int | None = None) -> Manifest:
    """The newest version, or the one of that number.

    Raises:
        NotFoundError: No dataset was committed there, or not that version.
        IntegrityError: The manifest is torn or altered.
    """
    number = newest_version(store) if version is None else version
    if not number:
        raise NotFoundError(
            f"{store.url} holds no committed dataset. Check the address, or write it with 'recurra data write'."
        )
    key = manifest_key(number)
    try:
        return Manifest.from_bytes(store.read(key), f"{store.url}/{key}")
    except IntegrityError:  # what was damaged on the way is fetched once more
        return Manifest.from_bytes(store.read(key), f"{store.url}/{key}")


def commit(
    store: Store, schema: SequenceSchema, metadata: Mapping[str, Any], segments: tuple[Segment, ...]
) -> Manifest:
    """Add segments as the next version; whoever loses the race for a number takes the next one.

    Raises:
        SchemaError: The dataset that is there has another schema.
        DataError: It has another value for one of the metadata keys, or a shard did not arrive whole.
        ConflictError: Others were faster again and again.
    """
    _check_arrival(store, segments)
    for _ in range(_MAX_RACES):
        number = newest_version(store)
        before = read_manifest(store, number) if number else Manifest(0, schema, {}, ())
        merged = join_metadata(store.url, before, schema, metadata)
        manifest = Manifest(number + 1, schema, merged, before.segments + segments)
        try:
            store.create(manifest_key(manifest.version), manifest.to_bytes())
        except ConflictError:
            continue
        return manifest
    raise ConflictError(
        f"{store.url}: another writer was faster {_MAX_RACES} times in a row. Nothing was committed; commit again."
    )


def join_metadata(url: str, there: Manifest, schema: SequenceSchema, metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Metadata after an append.

    Raises:
        SchemaError: The dataset has other columns.
        DataError: It has another value for a key.
    """
    if there.schema != schema:
        raise SchemaError(
            f"{url} has columns {_columns(there.schema)}; this writer has {_columns(schema)}. "
            "Write to another address, or with the same columns."
        )
    given = json.loads(_canonical(dict(metadata)))
    for key in given:
        if key in there.metadata and there.metadata[key] != given[key]:
            raise DataError(
                f"{url} was written with another '{key}' than this writer has. "
                f"Append with the dataset's own (Dataset.open(url).metadata['{key}']), or write to another address."
            )
    return {**there.metadata, **given}


def gone(url: str, key: str) -> IntegrityError:
    """The error for an object that the manifest names and the store does not have."""
    return IntegrityError(f"{url}/{key} is gone, though the manifest names it. Restore it, or write the dataset again.")


def _check_arrival(store: Store, segments: tuple[Segment, ...]) -> None:
    for shard in (shard for segment in segments for shard in segment.shards):
        size = store.size(shard.key)
        if size != shard.bytes:
            raise DataError(f"{store.url}/{shard.key} has {size} bytes; {shard.bytes} were written. Write it again.")


def _columns(schema: SequenceSchema) -> str:
    return ", ".join(
        f"{c.name} {c.dtype}{'' if c.width is None else f'[{c.width}]'} a {'step' if c.axis == 'time' else 'sequence'}"
        for c in schema.columns
    )


def _canonical(value: Any) -> bytes:
    try:
        return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
    except (TypeError, ValueError) as exc:
        raise DataError(f"Metadata must be plain JSON: {exc}. Keep numbers, text, lists and mappings in it.") from exc
