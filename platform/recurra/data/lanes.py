"""Lanes: the epoch as one stream of steps, cut into equal contiguous lanes that are read side by side. Pure: reads no data."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from recurra.data.manifest import Manifest
from recurra.data.order import BlockOrder, order_blocks, ranges, running
from recurra.data.plan import PlanOptions, Position, Share, seed_of

Ints = NDArray[np.int64]
_DRAWS = 256
"""Window lengths that are drawn at once."""
_RUN_STEPS, _RUNS = 1024, 256
"""A block's rows are shuffled in runs of about this many steps, or shorter ones so that there are so many runs."""


@dataclass(frozen=True, eq=False)
class LanePart:
    """Some consecutive windows of one rank's lanes. Steps are counted in the epoch's order."""

    lanes: Ints
    """[rows] global lane numbers; -1 for a row that only makes the ranks equal."""
    begin: Ints
    """[rows] first step of the part."""
    stop: Ints
    """[rows] step behind the lane's own last; not above `begin` when the lane has run out."""
    end: Ints
    """[rows] step behind the last that is copied, lookahead included."""
    cuts: Ints
    """[windows + 1] where windows begin, counted from `begin`."""
    tokens: Ints
    """[windows] real steps over all lanes of all ranks."""
    fresh: bool
    """Whether the lanes start here."""


class LanePlan:
    """`rows` lanes of `lane_steps` each; the last lanes may be shorter or empty."""

    def __init__(self, manifest: Manifest, options: PlanOptions) -> None:
        assert options.window is not None  # PlanOptions refuses lanes without one
        self._manifest = manifest
        self._options = options
        self._window: int = options.window
        self.total = manifest.steps
        self.lane_steps = -(-self.total // options.rows)

    def order(self, epoch: int) -> BlockOrder:
        """The blocks of the epoch."""
        return order_blocks(self._manifest, seed_of(self._manifest, self._options, epoch), self._options.shuffle)

    def batches(self, epoch: int) -> int:
        """Windows until the longest lane has run out."""
        if not self._options.window_spread and (self._options.window_start is None or epoch > 0):
            return -(-self.lane_steps // self._window)
        step, at = 0, 0
        while at < self.lane_steps:
            cuts = self.windows(Position(epoch, step, 0, at), _DRAWS)
            step, at = step + len(cuts) - 1, at + int(cuts[-1])
        return step

    def windows(self, position: Position, count: int) -> Ints:
        """[n + 1] where up to `count` windows from a position on begin, counted from there."""
        left = self.lane_steps - position.at
        cuts = np.minimum(running(self._widths(position, count)), left)
        return cuts[: int(np.searchsorted(cuts, left)) + 1]

    def part(self, position: Position, count: int, share: Share) -> LanePart:
        """What one rank needs for up to `count` windows."""
        cuts = self.windows(position, count)
        each = -(-self._options.rows // share.world_size)
        lanes = np.arange(share.rank * each, (share.rank + 1) * each)
        lanes[lanes >= self._options.rows] = -1
        begin, stop = self._bounds(lanes, position.at)
        end = np.minimum(
            begin + cuts[-1] + self._options.lookahead, np.minimum(stop + self._options.lookahead, self.total)
        )
        begin_all, stop_all = self._bounds(np.arange(self._options.rows), position.at)
        left = np.maximum(stop_all - begin_all, 0)
        tokens = np.diff(np.minimum(left[:, None], cuts[None, :]).sum(axis=0))
        return LanePart(lanes, begin, stop, np.where(begin < stop, end, begin), cuts, tokens, position.at == 0)

    def row_order(self, epoch: int, place: int, offsets: NDArray[np.int32]) -> Ints | None:
        """In which order the rows of a block come, given where they start and the last ends; None = as they stand.

        Neighbours stay together until they make up some length: copying single short rows would cost more than reading.
        """
        if not self._options.shuffle:
            return None
        starts = offsets[:-1] // min(_RUN_STEPS, max(1, int(offsets[-1]) // _RUNS))
        first = np.flatnonzero(np.diff(starts, prepend=-1))
        if len(first) < 2:
            return None
        runs = seed_of(self._manifest, self._options, epoch).permutation("rows", place, len(first))
        stop = np.append(first[1:], len(starts))
        return ranges(first[runs], stop[runs])

    def _bounds(self, lanes: Ints, at: int) -> tuple[Ints, Ints]:
        start = np.where(lanes < 0, self.total, lanes * self.lane_steps)
        return start + at, np.where(lanes < 0, 0, np.minimum(start + self.lane_steps, self.total))

    def _widths(self, position: Position, count: int) -> Ints:
        spread, start, growth = self._options.window_spread, self._options.window_start, self._options.window_growth
        widths = np.full(count, self._window, np.int64)
        if start is not None and position.epoch == 0:
            grown = np.minimum(np.arange(position.step, position.step + count), growth)
            widths = start + (self._window - start) * grown // growth
        if not spread:
            return widths
        seed = seed_of(self._manifest, self._options, position.epoch)
        first = position.step // _DRAWS
        numbers = range(first, (position.step + count - 1) // _DRAWS + 1)
        draws = np.concatenate([seed.draw("window", number, _DRAWS) for number in numbers])
        draws = draws[position.step - first * _DRAWS :][:count]
        return widths - spread + (draws % np.uint64(2 * spread + 1)).astype(np.int64)
