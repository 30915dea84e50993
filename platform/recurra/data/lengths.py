"""The side index: how long each sequence is, known without fetching any data."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from threading import Lock

import numpy as np
from isal import isal_zlib
from numpy.typing import NDArray

from recurra.data.manifest import Manifest, Segment, gone
from recurra.errors import IntegrityError, NotFoundError
from recurra.storage.url import open_store

_WHOLE_BYTES = 16 << 20
"""A segment's index up to this size is read at once and kept; of a larger one only the slices asked for."""


class LengthIndex:
    """Lengths of the sequences of a dataset. Safe to use from several threads."""

    def __init__(self, url: str, manifest: Manifest) -> None:
        self._url = url
        self._segments = manifest.segments
        self._blocks = manifest.blocks
        self._lock = Lock()
        self._whole: dict[int, NDArray[np.uint32]] = {}
        counts = [sum(len(shard.blocks) for shard in segment.shards) for segment in manifest.segments]
        self._first_block = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
        self._first_sequence = np.concatenate([[0], np.cumsum(self._blocks["sequences"])])

    def all(self) -> NDArray[np.uint32]:
        """[sequences] the whole index."""
        parts = [self._read_whole(segment) for segment in self._segments]
        return np.concatenate([np.zeros(0, np.uint32), *parts])

    def of_blocks(self, first: int, stop: int) -> NDArray[np.uint32]:
        """Lengths of the sequences that start in blocks `first` to `stop` - 1."""
        parts = []
        while first < stop:
            number = int(np.searchsorted(self._first_block, first, "right")) - 1
            end = min(stop, int(self._first_block[number + 1]))
            parts.append(self._of_segment(number, first, end))
            first = end
        return parts[0] if len(parts) == 1 else np.concatenate([np.zeros(0, np.uint32), *parts])

    def _of_segment(self, number: int, first: int, stop: int) -> NDArray[np.uint32]:
        segment = self._segments[number]
        base = self._first_sequence[self._first_block[number]]
        start, end = (int(self._first_sequence[block] - base) for block in (first, stop))
        if segment.sequences * np.dtype(segment.lengths_dtype).itemsize <= _WHOLE_BYTES:
            with self._lock:
                if number not in self._whole:
                    self._whole[number] = self._read_whole(segment)
            return self._whole[number][start:end]
        return self._read_slice(segment, first, stop, start)

    def _read_whole(self, segment: Segment) -> NDArray[np.uint32]:
        def intact(data: bytes) -> bool:
            return hashlib.sha256(data).hexdigest() == segment.lengths_sha256

        return self._read(segment, (0, None), intact, "its SHA-256 is not the manifest's")

    def _read_slice(self, segment: Segment, first: int, stop: int, start: int) -> NDArray[np.uint32]:
        size = np.dtype(segment.lengths_dtype).itemsize
        table = self._blocks[first:stop]
        ends = (np.cumsum(table["sequences"]) * size).tolist()
        checks = list(zip([0, *ends[:-1]], ends, table["lengths_crc32"].tolist(), strict=True))

        def intact(data: bytes) -> bool:
            return all(isal_zlib.crc32(data[low:high]) == crc32 for low, high, crc32 in checks)

        return self._read(segment, (start * size, ends[-1]), intact, f"blocks {first} to {stop - 1} have other lengths")

    def _read(
        self, segment: Segment, span: tuple[int, int | None], intact: Callable[[bytes], bool], problem: str
    ) -> NDArray[np.uint32]:
        """Checked lengths; what was damaged on the way is fetched once more."""
        store = open_store(self._url)
        try:
            data = store.read(segment.lengths_key, *span)
            if not intact(data):
                data = store.read(segment.lengths_key, *span)
        except NotFoundError as exc:
            raise gone(self._url, segment.lengths_key) from exc
        if not intact(data):
            raise IntegrityError(f"{self._url}/{segment.lengths_key} was altered: {problem}. Restore it.")
        return np.frombuffer(data, segment.lengths_dtype).astype(np.uint32)
