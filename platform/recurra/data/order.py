"""The order of an epoch's blocks and rows: a pure function of (manifest digest, seed, epoch)."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.random import Philox
from numpy.typing import NDArray

from recurra.data.manifest import Blocks, Manifest

_MAX_RUN_BLOCKS = 2
_RUNS_TO_SHUFFLE = 32
"""A dataset that has blocks enough is shuffled in runs of neighbours, which one request fetches."""


@dataclass(frozen=True)
class Seed:
    """What randomness of an epoch depends on, and nothing else."""

    digest: str
    seed: int
    epoch: int

    def draw(self, purpose: str, number: int, count: int) -> NDArray[np.uint64]:
        """`count` random 64-bit words of their own stream; stable over versions of numpy (raw Philox4x64-10)."""
        name = f"{self.digest}/{self.seed}/{self.epoch}/{purpose}/{number}"
        key = np.frombuffer(hashlib.sha256(name.encode()).digest()[:16], "<u8")
        return np.asarray(Philox(key=key).random_raw(count), np.uint64)

    def permutation(self, purpose: str, number: int, count: int) -> NDArray[np.int64]:
        """0 to `count` - 1 in random order."""
        bits = np.uint64(max(1, int(count - 1).bit_length()))
        mask = (np.uint64(1) << bits) - np.uint64(1)
        # Keys are made unique by the index in their low bits, so that the result does not depend on how numpy sorts.
        keys = (self.draw(purpose, number, count) & ~mask) | np.arange(count, dtype=np.uint64)
        keys.sort()
        return (keys & mask).astype(np.int64)


class BlockOrder:
    """The blocks of one epoch, end to end: coordinates of its sequences and steps.

    A *place* is an index into `blocks`; sequences and steps are counted in this order, not in the manifest's.
    """

    def __init__(self, table: Blocks, blocks: NDArray[np.int64]) -> None:
        self.blocks = blocks
        """[places] block numbers of the manifest."""
        self.first_sequence = running(table["sequences"][blocks])
        """[places + 1] sequences before each place; a block that continues one starts none."""
        self.first_step = running(table["steps"][blocks])
        """[places + 1] steps before each place."""

    def places_of_sequences(self, start: int, stop: int) -> tuple[int, int]:
        """Places (first, behind the last) that hold sequences `start` to `stop` - 1 whole."""
        first = int(np.searchsorted(self.first_sequence, start, "right")) - 1
        behind = int(np.searchsorted(self.first_sequence, stop, "left"))
        while behind < len(self.blocks) and self.first_sequence[behind + 1] == self.first_sequence[behind]:
            behind += 1
        return first, behind

    def place_of_step(self, steps: NDArray[np.int64]) -> NDArray[np.int64]:
        """The place that holds each step."""
        return np.searchsorted(self.first_step, steps, "right") - 1


def order_blocks(manifest: Manifest, seed: Seed, shuffle: bool) -> BlockOrder:
    """Runs of neighbouring blocks in random order, or the manifest's order; pieces of one sequence stay together."""
    table = manifest.blocks
    if not shuffle:
        return BlockOrder(table, np.arange(len(table), dtype=np.int64))
    starts = _run_starts(manifest)
    sizes = np.diff(np.append(starts, len(table)))
    runs = seed.permutation("blocks", 0, len(starts))
    blocks = np.repeat(starts[runs] - running(sizes[runs])[:-1], sizes[runs]) + np.arange(len(table))
    return BlockOrder(table, blocks.astype(np.int64))


def run_blocks(manifest: Manifest) -> int:
    """Blocks that stay neighbours in a shuffled epoch."""
    return min(_MAX_RUN_BLOCKS, max(1, len(manifest.blocks) // _RUNS_TO_SHUFFLE))


def _run_starts(manifest: Manifest) -> NDArray[np.int64]:
    table = manifest.blocks
    size = run_blocks(manifest)
    counts = np.array([len(shard.blocks) for shard in manifest.shards])
    in_shard = np.arange(len(table)) - np.repeat(running(counts)[:-1], counts)
    return np.flatnonzero((in_shard % size == 0) & ~table["continued"])


def running(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """[n + 1] sums of what stands before each item, and of all."""
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(counts, dtype=np.int64)])


def ranges(first: NDArray[np.int64], stop: NDArray[np.int64]) -> NDArray[np.int64]:
    """first[0] to stop[0] - 1, then first[1] to stop[1] - 1, and so on."""
    counts = stop - first
    return np.repeat(first - running(counts)[:-1], counts) + np.arange(counts.sum())
