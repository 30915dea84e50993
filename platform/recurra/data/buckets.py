"""Buckets: whole sequences, shuffled in a window, grouped by length, padded per global batch. Pure: reads no data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from recurra.data.lengths import LengthIndex
from recurra.data.manifest import Manifest
from recurra.data.order import BlockOrder, Seed, order_blocks, run_blocks, running
from recurra.data.plan import PlanOptions, Share, seed_of

_MIN_RUNS = 8
"""Runs of blocks that a shuffled window mixes, at least, however few sequences were asked for."""
_MAX_WINDOW_BYTES = 32 << 20
_FIRST_SHARE = 4
"""The first window of a shuffled epoch is this many times smaller than the others, but not smaller than what was asked
for: somebody waits for its first batch, which needs all of its blocks."""
_JITTER_BITS = 7
"""Lengths count up to 1/128 longer when rows are grouped, so that an epoch's batches are not those of the last one."""
_INDEX_BITS, _NOISE_BITS = 24, 16
_LONGEST = 1 << 23
"""Longer sequences are grouped as if they were this long: the sort key has no more bits."""

Ints = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class WindowPlan:
    """The global batches of one window. Rows stand in the order of the batches, within a batch in the epoch's order."""

    sequence: Ints
    """[rows] number in the epoch's order."""
    ids: Ints
    lengths: Ints
    start: Ints
    """[rows] first step, in the epoch's order."""
    place: Ints
    """[rows] where the sequence lies in the epoch's order of blocks."""
    last_place: Ints
    """[rows] where its last piece lies: the same place, unless it is larger than a block."""
    cuts: Ints
    """[batches + 1] first row of each batch."""
    shortest: Ints
    longest: Ints
    """[batches] padded length S."""
    tokens: Ints
    """[batches] real steps."""

    @property
    def batches(self) -> int:
        return len(self.longest)


class _Rows(NamedTuple):
    """Sequences in the epoch's order; fields as in `WindowPlan`."""

    ids: Ints
    lengths: Ints
    start: Ints
    place: Ints
    last_place: Ints


class BucketPlan:
    """The epoch's order cut into windows; a batch never spans two of them."""

    def __init__(self, manifest: Manifest, options: PlanOptions, lengths: LengthIndex) -> None:
        self._manifest = manifest
        self._options = options
        self._lengths = lengths
        self._first_id = running(manifest.blocks["sequences"])
        self._first_window, self._window = _window_sequences(manifest, options)
        self.windows = 1 + -(-(manifest.sequences - self._first_window) // self._window)

    def order(self, epoch: int) -> BlockOrder:
        """The blocks of the epoch."""
        return order_blocks(self._manifest, seed_of(self._manifest, self._options, epoch), self._options.shuffle)

    def batches(self, epoch: int) -> int:
        """Global batches of the epoch; by tokens this reads all lengths, a window at a time."""
        if self._options.batch_sequences is not None:
            return -(-self._manifest.sequences // self._options.batch_sequences)
        order = self.order(epoch)
        return sum(
            len(self._group(epoch, number, self._rows(order, number)[1])[1]) - 1 for number in range(self.windows)
        )

    def window(self, order: BlockOrder, epoch: int, number: int) -> WindowPlan:
        """Plan one window; needs the lengths of its sequences and nothing else."""
        found = self._rows(order, number)
        rows, cuts = self._group(epoch, number, found.lengths)
        lengths = found.lengths[rows]
        return WindowPlan(
            sequence=rows + self._bounds(number)[0],
            ids=found.ids[rows],
            lengths=lengths,
            start=found.start[rows],
            place=found.place[rows],
            last_place=found.last_place[rows],
            cuts=cuts,
            shortest=np.minimum.reduceat(lengths, cuts[:-1]),
            longest=np.maximum.reduceat(lengths, cuts[:-1]),
            tokens=np.add.reduceat(lengths, cuts[:-1]),
        )

    def share(self, window: WindowPlan, share: Share) -> tuple[Ints, Ints, Ints]:
        """For each batch: the rank's first row, the row behind its last, and its rows with filler."""
        each = -(-np.diff(window.cuts) // share.world_size)
        first = np.minimum(window.cuts[:-1] + share.rank * each, window.cuts[1:])
        return first, np.minimum(first + each, window.cuts[1:]), each

    def _bounds(self, number: int) -> tuple[int, int]:
        """First sequence of a window, in the epoch's order, and the one behind its last."""
        begin = 0 if number == 0 else self._first_window + (number - 1) * self._window
        return begin, min(self._first_window + number * self._window, self._manifest.sequences)

    def _rows(self, order: BlockOrder, number: int) -> _Rows:
        """The sequences of a window, in the epoch's order."""
        begin, end = self._bounds(number)
        first, behind = order.places_of_sequences(begin, end)
        blocks = order.blocks[first:behind]
        lengths = np.concatenate([self._lengths.of_blocks(*run) for run in _neighbours(blocks)]).astype(np.int64)
        counts = self._manifest.blocks["sequences"][blocks]
        places = np.arange(first, behind)
        starting = places[counts > 0]
        last = np.repeat(np.append(starting[1:], behind) - 1, counts[counts > 0])
        here = slice(begin - int(order.first_sequence[first]), end - int(order.first_sequence[first]))
        return _Rows(
            ids=(np.repeat(self._first_id[blocks] - running(counts)[:-1], counts) + np.arange(len(lengths)))[here],
            lengths=lengths[here],
            start=(order.first_step[first] + np.cumsum(lengths) - lengths)[here],
            place=np.repeat(places, counts)[here],
            last_place=last[here],
        )

    def _group(self, epoch: int, number: int, lengths: Ints) -> tuple[Ints, Ints]:
        """Rows of the window in batch order, and where batches begin."""
        shuffle = self._options.shuffle
        seed = seed_of(self._manifest, self._options, epoch)
        noise = seed.draw("lengths", number, len(lengths) + 1) if shuffle else None
        rows = _sort_by_length(lengths, noise)
        cuts = _cut(lengths[rows], self._options, int(noise[-1]) if noise is not None else -1)
        batch = np.repeat(np.arange(len(cuts) - 1), np.diff(cuts))
        if shuffle:
            place, cuts = _shuffle_batches(cuts, seed, number, short_last=self._options.batch_sequences is not None)
            batch = place[batch]
        # Rows of a batch stand in the epoch's order, so that each rank's rows come from few blocks. Sorting numbers of
        # 16 bits is four times as fast, and a window has more batches than that in the largest datasets only.
        batch_of_row = np.empty(len(rows), np.uint16 if len(cuts) <= 1 << 16 else np.int64)
        batch_of_row[rows] = batch
        return np.argsort(batch_of_row, kind="stable"), cuts


def _window_sequences(manifest: Manifest, options: PlanOptions) -> tuple[int, int]:
    """Sequences of the first window and of each other one: windows are about equally large, of the size asked for to
    twice that."""
    table = manifest.blocks
    total, rows = manifest.sequences, options.batch_sequences or 1
    wanted = options.bucket_window
    if options.shuffle:
        wanted = max(wanted, _MIN_RUNS * run_blocks(manifest) * total // len(table))
    windows = max(1, total // wanted, int(table["bytes"].sum()) // _MAX_WINDOW_BYTES, total >> (_INDEX_BITS - 1))
    window = first = -(-total // (windows * rows)) * rows
    if options.shuffle and windows > 1:
        first = min(first, -(-max(options.bucket_window, window // _FIRST_SHARE) // rows) * rows)
        left = max(1, total - first)  # a dataset may have fewer sequences than a batch has rows
        window = -(-left // (max(1, left // window) * rows)) * rows
    return first, window


def _neighbours(blocks: Ints) -> list[tuple[int, int]]:
    """Runs (first, behind the last) of consecutive numbers."""
    breaks = np.flatnonzero(np.diff(blocks) != 1) + 1
    return [(int(part[0]), int(part[-1]) + 1) for part in np.split(blocks, breaks)]


def _sort_by_length(lengths: Ints, noise: NDArray[np.uint64] | None) -> Ints:
    """Rows from short to long; `noise` decides among those of about the same length."""
    keys = np.minimum(lengths, _LONGEST).astype(np.uint64) << np.uint64(_NOISE_BITS)
    if noise is not None:
        spread = np.maximum(keys >> np.uint64(_JITTER_BITS), np.uint64(1 << _NOISE_BITS))
        keys += ((noise[:-1] >> np.uint64(40)) * spread) >> np.uint64(24)
    keys <<= np.uint64(_INDEX_BITS)
    keys |= np.arange(len(lengths), dtype=np.uint64)
    keys.sort()
    return (keys & np.uint64((1 << _INDEX_BITS) - 1)).astype(np.int64)


def _cut(lengths: Ints, options: PlanOptions, chance: int) -> Ints:
    """Where batches begin, and the end; `chance` says which batch is the short one, -1 the last."""
    count = len(lengths)
    if options.batch_sequences is None:
        return _cut_by_tokens(lengths, options.batch_tokens or 1)
    cuts: Ints = np.append(np.arange(0, count, options.batch_sequences), count)
    short = chance % (len(cuts) - 1)
    # Were the short batch always the last, the longest sequences would weigh most in every epoch.
    cuts[short + 1 : -1] -= cuts[-2] + options.batch_sequences - count
    return cuts


def _cut_by_tokens(lengths: Ints, budget: int) -> Ints:
    """As many rows as fit with their padding; one always does."""
    count = len(lengths)
    longest = np.maximum.accumulate(lengths).tolist()
    cuts = [0]
    while cuts[-1] < count:
        first = cuts[-1]
        low, high = first + 1, min(count, first + max(1, budget // longest[first]))
        while low < high:  # search for the last stop that still fits
            middle = (low + high + 1) // 2
            if (middle - first) * longest[middle - 1] <= budget:
                low = middle
            else:
                high = middle - 1
        cuts.append(low)
    return np.array(cuts, np.int64)


def _shuffle_batches(cuts: Ints, seed: Seed, number: int, short_last: bool) -> tuple[Ints, Ints]:
    """The new number of each batch, and where the new batches begin; a short one may come last."""
    sizes = np.diff(cuts)
    old = seed.permutation("batches", number, len(sizes))
    short = int(np.argmin(sizes))
    if short_last and sizes[short] < sizes.max():
        old = np.append(old[old != short], short)
    new = np.empty_like(old)
    new[old] = np.arange(len(old))
    return new, running(sizes[old])
