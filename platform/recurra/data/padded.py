"""Bucket batches out of blocks: one buffer for a window, then one strided gather for each batch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from recurra.data.batch import Batch
from recurra.data.buckets import BucketPlan, Ints, WindowPlan
from recurra.data.columns import Array, Rows
from recurra.data.order import BlockOrder, ranges, running
from recurra.data.plan import Position, Share
from recurra.data.schema import Column, SequenceSchema
from recurra.data.stream import Chunk

WEIGHT = "weight"
"""A sequence column of this name is each row's weight in the loss."""

_BATCHES_A_GATHER = 16


class BucketStream:
    """One rank's bucket batches."""

    def __init__(self, schema: SequenceSchema, plan: BucketPlan, share: Share) -> None:
        self.schema = schema
        self.plan = plan
        self.share = share

    def batches(self, epoch: int) -> int:
        return self.plan.batches(epoch)

    def chunks(self, position: Position) -> Iterator[BucketChunk]:
        order = self.plan.order(position.epoch)
        step, at = position.step, position.at
        for number in range(position.part, self.plan.windows):
            window = self.plan.window(order, position.epoch, number)
            if at < window.batches:
                yield BucketChunk(self, order, window, Position(position.epoch, step, number, at))
            step += window.batches - at
            at = 0

    def prepare(self, chunk: Chunk, place: int, rows: Rows) -> Rows:
        return rows

    def uses(self, epoch: int) -> NDArray[np.float64]:
        blocks = self.plan.order(epoch).blocks
        found = np.empty(len(blocks))
        found[blocks] = epoch + np.arange(len(blocks)) / len(blocks)
        return found


class BucketChunk:
    """The batches of one window from a position on."""

    def __init__(self, stream: BucketStream, order: BlockOrder, window: WindowPlan, start: Position) -> None:
        self.stream = stream
        self.order = order
        self.epoch = start.epoch
        self.start = start
        self.window = window
        first, stop, each = stream.plan.share(window, stream.share)
        self.rows = ranges(first[start.at :], stop[start.at :])
        """[rows] this rank's rows of the window, in batch order."""
        self.cuts = running((stop - first)[start.at :])
        self.each = each[start.at :]
        self.first_place = order.place_of_step(window.start[self.rows])
        last_place = order.place_of_step(window.start[self.rows] + window.lengths[self.rows] - 1)
        self.places = covered(self.first_place, last_place)

    def assemble(self, rows: Mapping[int, Rows]) -> AssembledBuckets:
        return AssembledBuckets(self, rows)


class AssembledBuckets:
    """A window's batches for one rank.

    Time columns are gathered for several batches of about the same length at once: what numpy costs for a call is then
    shared by many rows.
    """

    def __init__(self, chunk: BucketChunk, rows: Mapping[int, Rows]) -> None:
        window, start, schema = chunk.window, chunk.start, chunk.stream.schema
        self.batches = window.batches - start.at
        self._start = start
        self._cuts: list[int] = chunk.cuts.tolist()
        self._each: list[int] = chunk.each.tolist()
        self._longest: list[int] = window.longest[start.at :].tolist()
        self._tokens: list[int] = window.tokens[start.at :].tolist()
        self._lengths = window.lengths[chunk.rows]
        self._ids = window.ids[chunk.rows]
        total = running(self._lengths)
        self.real: list[int] = np.diff(total[chunk.cuts]).tolist()
        blocks = [rows[place] for place in chunk.places.tolist()]
        self._slots, self._time = self._gather(chunk, blocks)
        in_block = window.sequence[chunk.rows] - chunk.order.first_sequence[chunk.first_place]
        first_row = running(np.array([len(block.offsets) - 1 for block in blocks], np.int64))
        row = first_row[np.searchsorted(chunk.places, chunk.first_place)] + in_block
        self._sequence = {
            c.name: _pick([block.sequence[c.name] for block in blocks], row, c) for c in schema.sequence_columns
        }
        self._weight = self._sequence.get(WEIGHT, np.ones(len(chunk.rows), np.float32)).astype(np.float32, copy=False)
        # Every row starts at its first step: one pattern, as wide as the longest, serves all batches.
        self._reset = np.zeros((max(self._each, default=0), max(self._longest, default=0)), np.bool_)
        self._reset[:, :1] = True

    def behind(self, index: int) -> Position:
        epoch, step = self._start.epoch, self._start.step + index + 1
        if index + 1 == self.batches:
            return Position(epoch, step, self._start.part + 1, 0)
        return Position(epoch, step, self._start.part, self._start.at + index + 1)

    def batch(self, index: int, position: dict[str, int | str]) -> Batch:
        low, high = self._cuts[index], self._cuts[index + 1]
        longest, each = self._longest[index], self._each[index]
        group, first = self._slots[index]
        columns: dict[str, NDArray[np.generic]] = {}
        for name, groups in self._time.items():
            rows = groups[group][first : first + high - low, :longest]
            columns[name] = rows.copy() if high - low == each else _fill(rows, each)
        for name, values in self._sequence.items():
            columns[name] = _fill(values[low:high], each)
        return Batch(
            columns=columns,
            lengths=_fill(self._lengths[low:high], each),
            reset=self._reset[:each, :longest],
            ids=_fill(self._ids[low:high], each, -1),
            weight=_fill(self._weight[low:high], each),
            lanes=None,
            epoch=self._start.epoch,
            step_in_epoch=self._start.step + index,
            global_tokens=self._tokens[index],
            position=position,
        )

    def _gather(self, chunk: BucketChunk, blocks: list[Rows]) -> tuple[list[tuple[int, int]], dict[str, list[Array]]]:
        """For each batch its group and first row there, and for each time column the groups, [rows, S] or [rows, S, F]."""
        window = chunk.window
        shift = running(np.array([block.steps for block in blocks], np.int64))[:-1]
        shift = shift - chunk.order.first_step[chunk.places]
        offsets = window.start[chunk.rows] + shift[np.searchsorted(chunk.places, chunk.first_place)]
        spare = max(self._longest, default=0)
        by_length = np.argsort(self._longest, kind="stable")
        slots = [(0, 0)] * self.batches
        groups = []
        for number, first in enumerate(range(0, self.batches, _BATCHES_A_GATHER)):
            members = by_length[first : first + _BATCHES_A_GATHER]
            at = running(chunk.cuts[members + 1] - chunk.cuts[members])
            for batch, row in zip(members.tolist(), at.tolist(), strict=False):
                slots[batch] = (number, row)
            rows = ranges(chunk.cuts[members], chunk.cuts[members + 1])
            groups.append((offsets[rows], self._lengths[rows], self._longest[members[-1]]))
        time = {}
        for column in chunk.stream.schema.time_columns:
            values = _join([block.time[column.name] for block in blocks], column, spare)
            time[column.name] = [gather(values, *group) for group in groups]
        return slots, time


def gather(values: Array, offsets: Ints, lengths: Ints, longest: int) -> Array:
    """[B, S] or [B, S, F]: `longest` steps from each offset, those behind a row's end set to zero.

    Args:
        values: [steps, ...] C-contiguous, with at least `longest` steps behind the last offset.
    """
    step = values.strides[0]
    # One opaque item per row makes numpy copy each row by a single memcpy: 5x the speed of a loop over rows.
    items = np.ndarray((len(values) - longest + 1,), f"V{step * longest}", values, 0, (step,))
    rows = items[offsets].view(values.dtype).reshape(len(offsets), longest, *values.shape[1:])
    shortest = int(lengths.min()) if len(lengths) else longest
    if shortest < longest:
        rows[:, shortest:][np.arange(shortest, longest) >= lengths[:, None]] = 0
    return rows


def covered(first: Ints, last: Ints) -> Ints:
    """The numbers that lie in any of the ranges first[i] to last[i], ascending."""
    if not len(first):
        return first
    low, count = int(first.min()), int(last.max()) - int(first.min()) + 2
    starts, stops = np.bincount(first - low, minlength=count), np.bincount(last - low + 1, minlength=count)
    return np.flatnonzero(np.cumsum(starts - stops)) + low


def _join(parts: list[Array], column: Column, spare: int) -> Array:
    """The parts end to end, and `spare` steps of zeros for `gather` to run over."""
    width = () if column.width is None else (column.width,)
    return np.concatenate([*parts, np.zeros((spare, *width), column.dtype)])


def _pick(parts: list[Any], rows: Ints, column: Column) -> NDArray[Any]:
    if column.dtype == "string":
        if not parts:
            return np.zeros(0, object)
        texts = pa.concat_arrays(parts).take(pa.Array.from_buffers(pa.int64(), len(rows), [None, pa.py_buffer(rows)]))
        return np.array([*texts.to_pylist(), None], object)[:-1]
    width = () if column.width is None else (column.width,)
    return np.concatenate([*parts, np.zeros((0, *width), column.dtype)])[rows]


def _fill(rows: NDArray[Any], count: int, value: int = 0) -> NDArray[Any]:
    """The rows, and filler up to `count`."""
    if len(rows) == count:
        return rows
    filler = "" if rows.dtype == object else value
    return np.concatenate([rows, np.full((count - len(rows), *rows.shape[1:]), filler, rows.dtype)])
