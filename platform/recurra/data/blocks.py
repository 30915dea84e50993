"""Blocks out of memory, cache or store: one request for neighbours, a checksum for each, decoded without copying."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from isal import isal_zlib

from recurra.data.cache import BlockCache
from recurra.data.columns import Rows, arrow_schema, decode_block
from recurra.data.manifest import Manifest, gone
from recurra.data.order import running
from recurra.errors import IntegrityError, NotFoundError
from recurra.storage.url import open_store

REQUEST_BYTES = 8 << 20
"""Neighbouring blocks are fetched by one request up to this size."""

NextUse = Callable[[int], float]
"""When a block is needed again, in epochs: what a cache must know to keep the right ones."""


def never(block: int) -> float:
    """The next use of what is read once."""
    return math.inf


class BlockSource:
    """Reads blocks of one dataset in the calling thread; safe to use from several.

    Args:
        url: The dataset's address.
        manifest: Its manifest.
        keep_bytes: A dataset of up to this size is fetched once and then kept in memory.
        cache: Where blocks are looked for first, and put after they were fetched.
    """

    def __init__(self, url: str, manifest: Manifest, *, keep_bytes: int = 0, cache: BlockCache | None = None) -> None:
        self.manifest = manifest
        self._url = url
        self._arrow = arrow_schema(manifest.schema)
        counts = np.array([len(shard.blocks) for shard in manifest.shards], np.int64)
        self._shard_of = np.repeat(np.arange(len(counts)), counts)
        self._first_block = running(counts)
        self._kept: dict[int, Rows] | None = {} if int(manifest.blocks["bytes"].sum()) <= keep_bytes else None
        self._cache = cache

    def read(self, blocks: Sequence[int], next_use: NextUse = never) -> list[Rows]:
        """The rows of some blocks.

        Raises:
            IntegrityError: A block's bytes are not those that were written, or its shard is gone.
        """
        found: dict[int, Rows] = {}
        if self._kept is not None:
            found = {block: self._kept[block] for block in blocks if block in self._kept}
        if self._cache is not None:
            found.update(self._cached(self._cache, [block for block in blocks if block not in found], next_use))
        for run in self.requests([block for block in blocks if block not in found]):
            for block, piece in self._fetch(run):
                if self._cache is not None:
                    self._cache.write(self._name(block), piece, next_use(block))
                found[block] = decode_block(self.manifest.schema, self._arrow, piece)
        if self._kept is not None:
            self._kept.update(found)
        return [found[block] for block in blocks]

    def requests(self, blocks: Sequence[int]) -> list[list[int]]:
        """Ascending blocks as they are fetched: neighbours together, up to `REQUEST_BYTES`."""
        table = self.manifest.blocks
        runs: list[list[int]] = []
        size = 0
        for block in blocks:
            new = not runs or block != runs[-1][-1] + 1 or self._shard_of[block] != self._shard_of[runs[-1][-1]]
            if new or size + int(table["bytes"][block]) > REQUEST_BYTES:
                runs.append([])
                size = 0
            runs[-1].append(block)
            size += int(table["bytes"][block])
        return runs

    def check(self, block: int, data: memoryview, start: int) -> memoryview:
        """The block's bytes, out of `data` that begins at byte `start` of its shard.

        Raises:
            IntegrityError: They are not those that were written; names shard and block.
        """
        entry = self.manifest.blocks[block]
        low = int(entry["offset"]) - start
        piece = data[low : low + int(entry["bytes"])]
        if not self._intact(block, piece):
            number = int(self._shard_of[block])
            raise IntegrityError(
                f"Block {block - int(self._first_block[number])} of {self._url}/{self.manifest.shards[number].key} was "
                "altered: its bytes do not match the CRC32 in the manifest. Restore the shard, or write the dataset again."
            )
        return piece

    def expect(self, next_use: NextUse) -> None:
        """Tell the cache when the blocks are needed that it holds from earlier."""
        if self._cache is None:
            return
        numbers = {shard.sha256[:32]: number for number, shard in enumerate(self.manifest.shards)}

        def use_of(name: str) -> float:
            digest, _, offset = name.partition("-")
            if digest not in numbers or not offset.isdecimal():
                return math.inf
            shard = self.manifest.shards[numbers[digest]]
            found = int(np.searchsorted(shard.blocks["offset"], int(offset)))
            return next_use(int(self._first_block[numbers[digest]]) + found) if found < len(shard.blocks) else math.inf

        self._cache.expect(use_of)

    def _fetch(self, blocks: Sequence[int]) -> Iterator[tuple[int, memoryview]]:
        """Checked bytes of neighbours, by one request; what was damaged on the way is fetched once more."""
        data, start = self._range(blocks[0], blocks[-1])
        for block in blocks:
            try:
                piece = self.check(block, data, start)
            except IntegrityError:
                piece = self.check(block, *self._range(block, block))
            yield block, piece

    def _range(self, first: int, last: int) -> tuple[memoryview, int]:
        table = self.manifest.blocks
        shard = self.manifest.shards[self._shard_of[first]]
        start = int(table["offset"][first])
        size = int(table["offset"][last] + table["bytes"][last]) - start
        try:
            return memoryview(open_store(self._url).read(shard.key, start, size)), start
        except NotFoundError as exc:
            raise gone(self._url, shard.key) from exc

    def _cached(self, cache: BlockCache, blocks: Sequence[int], next_use: NextUse) -> dict[int, Rows]:
        found = {}
        for block in blocks:
            data = cache.read(self._name(block), next_use(block))
            if data is None:
                continue
            if self._intact(block, memoryview(data)):
                found[block] = decode_block(self.manifest.schema, self._arrow, data)
            else:
                cache.drop(self._name(block))
        return found

    def _intact(self, block: int, piece: memoryview) -> bool:
        entry = self.manifest.blocks[block]
        return len(piece) == int(entry["bytes"]) and isal_zlib.crc32(piece) == int(entry["crc32"])

    def _name(self, block: int) -> str:
        """Of a block's file in the cache; equal names hold equal bytes, whatever dataset they belong to."""
        shard = self.manifest.shards[self._shard_of[block]]
        return f"{shard.sha256[:32]}-{self.manifest.blocks['offset'][block]}"
