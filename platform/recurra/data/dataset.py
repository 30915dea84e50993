"""A committed dataset: what is in it, one sequence of it, and whether its bytes are still those that were written."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recurra.data.blocks import BlockSource
from recurra.data.columns import Rows
from recurra.data.lengths import LengthIndex
from recurra.data.manifest import Manifest, Segment, Shard, gone, read_manifest
from recurra.data.order import running
from recurra.data.schema import SequenceSchema
from recurra.errors import DataError, IntegrityError, NotFoundError
from recurra.storage.url import open_store
from recurra.vocabulary import Digest


class Dataset:
    """One version of a dataset. Pickles as its address and version, so that every process reads the same one."""

    def __init__(self, url: str, manifest: Manifest) -> None:
        self.url = url.rstrip("/")
        self.manifest = manifest
        self.index = LengthIndex(self.url, manifest)
        self._source = BlockSource(self.url, manifest)
        self._first_id = running(manifest.blocks["sequences"])

    @classmethod
    def open(cls, url: str, version: int | None = None) -> Dataset:
        """The newest version, or the one of that number.

        Raises:
            NotFoundError: Nothing was committed there.
            IntegrityError: The manifest is torn or altered.
        """
        return cls(url, read_manifest(open_store(url), version))

    def __reduce__(self) -> tuple[Any, ...]:
        return Dataset.open, (self.url, self.version)

    @property
    def schema(self) -> SequenceSchema:
        return self.manifest.schema

    @property
    def metadata(self) -> dict[str, Any]:
        return self.manifest.metadata

    @property
    def version(self) -> int:
        return self.manifest.version

    @property
    def digest(self) -> Digest:
        """SHA-256 of the manifest's content."""
        return self.manifest.digest

    @property
    def sequences(self) -> int:
        return self.manifest.sequences

    @property
    def steps(self) -> int:
        """Time steps of all sequences."""
        return self.manifest.steps

    def __len__(self) -> int:
        return self.sequences

    def lengths(self) -> NDArray[np.uint32]:
        """[sequences] time steps of each, from the side index; reads no data."""
        return self.index.all()

    def __getitem__(self, number: int) -> dict[str, Any]:
        """One sequence: time columns [T] or [T, F], sequence columns as numbers, arrays [F] or text.

        Raises:
            DataError: There is no such sequence.
        """
        if not 0 <= number < self.sequences:
            raise DataError(f"{self.url} has no sequence {number}. It has 0 to {self.sequences - 1}.")
        block = int(np.searchsorted(self._first_id, number, "right")) - 1
        return self._example(self._pieces(block), number - int(self._first_id[block]))

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Every sequence, in order; holds what one request fetches, about 8 MiB, or a sequence that is longer."""
        continued = self.manifest.blocks["continued"]
        parts: list[Rows] = []
        for run in self._source.requests(range(len(continued))):
            for block, rows in zip(run, self._source.read(run), strict=True):
                if not continued[block]:
                    yield from self._examples(parts)
                    parts = []
                parts.append(rows)
        yield from self._examples(parts)

    def verify(self, progress: Callable[[int, int], None] | None = None) -> None:
        """Read every byte again and compare hashes; `progress` is told (bytes done, bytes in all) after each object.

        Raises:
            IntegrityError: Names the object, and the first block of it, that differs or is gone.
        """
        sizes = [shard.bytes for shard in self.manifest.shards]
        done, total = 0, sum(sizes)
        number = 0
        for segment in self.manifest.segments:
            for shard in segment.shards:
                self._verify_shard(shard, number)
                done += shard.bytes
                number += len(shard.blocks)
                if progress is not None:
                    progress(done, total)
            self._verify_lengths(segment)

    def _pieces(self, block: int) -> list[Rows]:
        """The block, and those that continue its only sequence."""
        table = self.manifest.blocks
        behind = block + 1
        while behind < len(table) and table["continued"][behind]:
            behind += 1
        return [self._source.read([number])[0] for number in range(block, behind)]

    def _verify_shard(self, shard: Shard, first_block: int) -> None:
        data = self._read(shard.key)
        if hashlib.sha256(data).hexdigest() == shard.sha256:
            return
        if len(data) != shard.bytes:
            raise IntegrityError(
                f"{self.url}/{shard.key} has {len(data)} bytes; {shard.bytes} were written. Restore it."
            )
        for block in range(first_block, first_block + len(shard.blocks)):
            self._source.check(block, memoryview(data), 0)
        raise IntegrityError(f"{self.url}/{shard.key} was altered outside its blocks (header or footer). Restore it.")

    def _verify_lengths(self, segment: Segment) -> None:
        if hashlib.sha256(self._read(segment.lengths_key)).hexdigest() != segment.lengths_sha256:
            raise IntegrityError(f"{self.url}/{segment.lengths_key} was altered. Restore it.")

    def _read(self, key: str) -> bytes:
        try:
            return open_store(self.url).read(key)
        except NotFoundError as exc:
            raise gone(self.url, key) from exc

    def _examples(self, parts: list[Rows]) -> Iterator[dict[str, Any]]:
        """The sequences of a block, or the one that several blocks hold."""
        for row in range(len(parts[0].offsets) - 1 if parts else 0):
            yield self._example(parts, row)

    def _example(self, parts: list[Rows], row: int) -> dict[str, Any]:
        low, high = int(parts[0].offsets[row]), int(parts[0].offsets[row + 1])
        example: dict[str, Any] = {}
        for column in self.schema.columns:
            if column.axis == "sequence":
                value = parts[0].sequence[column.name][row]
                example[column.name] = value.as_py() if column.dtype == "string" else value
            elif len(parts) == 1:
                example[column.name] = parts[0].time[column.name][low:high]
            else:
                example[column.name] = np.concatenate([part.time[column.name] for part in parts])
        return example
