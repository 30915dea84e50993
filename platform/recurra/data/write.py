"""Examples become shards, and shards become a dataset when the manifest is put."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

import numpy as np
import pyarrow as pa
from isal import isal_zlib

from recurra.data.columns import Array, arrow_schema, build_block, bytes_per_step, check_example, convert
from recurra.data.manifest import BLOCK, Manifest, Segment, Shard, commit, join_metadata, newest_version, read_manifest
from recurra.data.schema import SequenceSchema
from recurra.data.vocabulary import Vocabulary
from recurra.errors import ConfigError, DataError
from recurra.storage.store import Store
from recurra.storage.url import open_store

SHARD_BYTES = 48 << 20
BLOCK_BYTES = 1 << 20
_MIN_BLOCK_BYTES = 64


class ShardWriter:
    """Puts shards into a store as they fill up; nobody sees them until a commit names them.

    Holds one shard in memory. A sequence larger than a block is cut into pieces, one to a block, so that
    neither writer nor reader ever holds more of it than they must.
    """

    def __init__(
        self,
        store: Store,
        schema: SequenceSchema,
        metadata: Mapping[str, Any],
        *,
        shard_bytes: int = SHARD_BYTES,
        block_bytes: int = BLOCK_BYTES,
    ) -> None:
        if not _MIN_BLOCK_BYTES <= block_bytes <= 1 << 28 or not block_bytes <= shard_bytes <= 1 << 31:
            raise ConfigError(
                f"block_bytes is {block_bytes} and shard_bytes is {shard_bytes}. "
                f"Set block_bytes to {_MIN_BLOCK_BYTES} or more (1-4 MiB is best) and shard_bytes to at least that."
            )
        self._store = store
        self._schema = schema
        self._clock = schema.time_columns[0].name
        """A column that tells a row's steps."""
        self._limits = value_limits(metadata)
        self._shard_bytes = shard_bytes
        self._block_bytes = block_bytes
        self._steps_per_block = max(1, block_bytes // bytes_per_step(schema))
        self._shards: list[Shard] = []
        self._lengths: list[int] = []
        self._rows: list[dict[str, Any]] = []
        self._row_bytes = 0
        self._open_shard()
        self.sequences = 0
        """Rows written so far."""

    def write(self, example: Mapping[str, Any]) -> None:
        """Add one sequence.

        Raises:
            DataError: A value is missing, unknown, of another shape, not finite or out of range; names row and column.
                Nothing of the example was taken.
        """
        arrays = check_example(self._schema, example, self.sequences)
        length = len(arrays[self._clock])
        if length <= self._steps_per_block:
            self._add_row(self._convert(arrays, 0, length))
        else:
            self._add_pieces(arrays, length)
        self._lengths.append(length)
        self.sequences += 1

    def finish(self) -> Segment:
        """Put what is left and the side index of lengths.

        Raises:
            DataError: Nothing was written.
        """
        if not self.sequences:
            raise DataError("No sequence was written, so there is no dataset. Check the input for rows.")
        self._close_block()
        self._close_shard()
        longest = max(self._lengths)
        dtype = np.uint8 if longest < 1 << 8 else np.uint16 if longest < 1 << 16 else np.uint32
        lengths = np.array(self._lengths, np.dtype(dtype).newbyteorder("<"))
        shards, first = [], 0
        for shard in self._shards:
            for block in shard.blocks:
                end = first + int(block["sequences"])
                block["lengths_crc32"] = isal_zlib.crc32(lengths[first:end].tobytes())
                first = end
            shards.append(shard)
        data = lengths.tobytes()
        segment = Segment(tuple(shards), hashlib.sha256(data).hexdigest(), np.dtype(dtype).name)
        self._store.write(segment.lengths_key, data)
        return segment

    def _convert(self, arrays: Mapping[str, Any], start: int, stop: int) -> dict[str, Any]:
        row: dict[str, Any] = {}
        for column in self._schema.columns:
            value = arrays[column.name]
            if column.axis == "time":
                value = value[start:stop]
            if column.dtype != "string":
                value = convert(column, value, self.sequences, self._limits.get(column.name))
            row[column.name] = value
        return row

    def _add_row(self, row: dict[str, Any]) -> None:
        self._rows.append(row)
        self._row_bytes += sum(_size(value) for value in row.values())
        if self._row_bytes >= self._block_bytes:
            self._close_block()

    def _add_pieces(self, arrays: Mapping[str, Any], length: int) -> None:
        starts = range(0, length, self._steps_per_block)
        for start in starts:  # all of it is checked before any of it is taken
            self._convert(arrays, start, start + self._steps_per_block)
        self._close_block()
        for start in starts:
            self._rows = [self._convert(arrays, start, start + self._steps_per_block)]
            self._close_block(continued=start > 0)

    def _close_block(self, continued: bool = False) -> None:
        if not self._rows:
            return
        batch = build_block(self._schema, self._rows)
        self._ipc.write_batch(batch)
        end = self._sink.tell()
        # The file's schema message is written along with the first batch, so its size is only known from behind.
        size = end - self._blocks[-1][0] - self._blocks[-1][1] if self._blocks else len(batch.serialize())
        steps = sum(len(row[self._clock]) for row in self._rows)
        sequences = 0 if continued else len(self._rows)
        self._blocks.append((end - size, size, 0, sequences, steps, continued, 0))
        self._rows, self._row_bytes = [], 0
        if end >= self._shard_bytes:
            self._close_shard()

    def _open_shard(self) -> None:
        self._sink = pa.BufferOutputStream()
        self._ipc = pa.ipc.new_file(self._sink, arrow_schema(self._schema))
        self._blocks: list[tuple[int, int, int, int, int, bool, int]] = []

    def _close_shard(self) -> None:
        if not self._blocks:
            return
        self._ipc.close()
        data = memoryview(self._sink.getvalue())
        blocks = np.array(self._blocks, BLOCK)
        for block in blocks:
            block["crc32"] = isal_zlib.crc32(data[block["offset"] : block["offset"] + block["bytes"]])
        shard = Shard(hashlib.sha256(data).hexdigest(), len(data), blocks)
        self._store.write(shard.key, data)
        self._shards.append(shard)
        self._open_shard()


class DatasetWriter:
    """Writes sequences to an address and commits them in one step; appends if a dataset is there.

    As a context manager it commits on a clean exit; after an exception nothing of it is visible.

    Args:
        url: `s3://bucket/prefix` or `file:///dir`.
        schema: Columns of every example; the same as the dataset's when appending.
        metadata: Plain JSON kept in the manifest. `vocabulary` (a vocabulary's `to_json()`) bounds the column
            `tokens`, `labels` (a list of class names) bounds the column `label`.
        shard_bytes: Objects are this large or a block larger; one is held in memory.
        block_bytes: What one range request fetches.

    Raises:
        SchemaError: The dataset at the address has other columns.
    """

    def __init__(
        self,
        url: str,
        schema: SequenceSchema,
        metadata: Mapping[str, Any] | None = None,
        *,
        shard_bytes: int = SHARD_BYTES,
        block_bytes: int = BLOCK_BYTES,
    ) -> None:
        self._store = open_store(url)
        self._schema = schema
        self._metadata = dict(metadata or {})
        if newest_version(self._store):
            there = read_manifest(self._store)
            self._metadata = join_metadata(url, there, schema, self._metadata)
        self._shards = ShardWriter(
            self._store, schema, self._metadata, shard_bytes=shard_bytes, block_bytes=block_bytes
        )

    @property
    def sequences(self) -> int:
        """Rows written so far."""
        return self._shards.sequences

    def write(self, example: Mapping[str, Any]) -> None:
        """Add one sequence, such as `{"tokens": [1, 2, 3], "label": 0}`; see `ShardWriter.write` for the errors."""
        self._shards.write(example)

    def commit(self) -> Manifest:
        """Make everything written visible as the dataset's next version. Call it once."""
        return commit(self._store, self._schema, self._metadata, (self._shards.finish(),))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.commit()


def value_limits(metadata: Mapping[str, Any]) -> dict[str, int]:
    """Column name -> number of ids it may hold, from the vocabulary and the labels."""
    limits = {}
    if "vocabulary" in metadata:
        limits["tokens"] = Vocabulary.from_json(metadata["vocabulary"]).size
    if "labels" in metadata:
        limits["label"] = len(metadata["labels"])
    return limits


def _size(value: Array | str) -> int:
    return len(value) if isinstance(value, str) else value.nbytes
