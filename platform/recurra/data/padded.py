"""Bucket batches out of blocks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from recurra.data.batch import Batch
from recurra.data.buckets import BucketPlan, Ints, WindowPlan
from recurra.data.columns import Rows
from recurra.data.gather import TimeColumns
from recurra.data.order import BlockOrder, ranges, running
from recurra.data.plan import Position, Share
from recurra.data.schema import Column, SequenceSchema
from recurra.data.stream import Chunk

WEIGHT = "weight"
"""A sequence column of this name is each row's weight in the loss."""


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
        self.place = window.place[self.rows]
        self.places = covered(self.place, window.last_place[self.rows])

    def assemble(self, rows: Mapping[int, Rows]) -> AssembledBuckets:
        return AssembledBuckets(self, rows)


class AssembledBuckets:
    """A window's batches for one rank."""

    def __init__(self, chunk: BucketChunk, rows: Mapping[int, Rows]) -> None:
        window, start, schema = chunk.window, chunk.start, chunk.stream.schema
        self.batches = window.batches - start.at
        self._start = start
        self._cuts: list[int] = chunk.cuts.tolist()
        self._each: list[int] = chunk.each.tolist()
        self._shortest: list[int] = window.shortest[start.at :].tolist()
        self._longest: list[int] = window.longest[start.at :].tolist()
        self._tokens: list[int] = window.tokens[start.at :].tolist()
        self._lengths = window.lengths[chunk.rows]
        self._ids = window.ids[chunk.rows]
        self.real: list[int] = np.diff(running(self._lengths)[chunk.cuts]).tolist()
        blocks = [rows[place] for place in chunk.places.tolist()]
        longest = max(self._longest, default=0)
        self._time = TimeColumns(schema, blocks, longest)
        before, number = chunk.order, np.searchsorted(chunk.places, chunk.place)
        shift = running(np.array([block.steps for block in blocks], np.int64))[:-1] - before.first_step[chunk.places]
        self._offsets = window.start[chunk.rows] + shift[number]
        shift = running(np.array([len(block.offsets) - 1 for block in blocks], np.int64))[:-1]
        row = window.sequence[chunk.rows] + (shift - before.first_sequence[chunk.places])[number]
        self._sequence = {
            c.name: _pick([block.sequence[c.name] for block in blocks], row, c) for c in schema.sequence_columns
        }
        self._weight = self._sequence.get(WEIGHT, np.ones(len(chunk.rows), np.float32)).astype(np.float32, copy=False)
        # Every row starts at its first step: one pattern, as wide as the longest, serves all batches.
        self._reset = np.zeros((max(self._each, default=0), longest), np.bool_)
        self._reset[:, :1] = True

    def behind(self, index: int) -> Position:
        epoch, step = self._start.epoch, self._start.step + index + 1
        if index + 1 == self.batches:
            return Position(epoch, step, self._start.part + 1, 0)
        return Position(epoch, step, self._start.part, self._start.at + index + 1)

    def batch(self, index: int, position: dict[str, int | str]) -> Batch:
        low, high = self._cuts[index], self._cuts[index + 1]
        longest, each = self._longest[index], self._each[index]
        lengths = self._lengths[low:high]
        time = self._time.batch(self._offsets[low:high], lengths, self._shortest[index], longest)
        columns = {name: _fill(rows, each) for name, rows in time.items()}
        for name, values in self._sequence.items():
            columns[name] = _fill(values[low:high], each)
        return Batch(
            columns=columns,
            lengths=_fill(lengths, each),
            reset=self._reset[:each, :longest],
            ids=_fill(self._ids[low:high], each, -1),
            weight=_fill(self._weight[low:high], each),
            lanes=None,
            epoch=self._start.epoch,
            step_in_epoch=self._start.step + index,
            global_tokens=self._tokens[index],
            position=position,
        )


def covered(first: Ints, last: Ints) -> Ints:
    """The numbers that lie in any of the ranges first[i] to last[i], ascending."""
    if not len(first):
        return first
    low, count = int(first.min()), int(last.max()) - int(first.min()) + 2
    starts, stops = np.bincount(first - low, minlength=count), np.bincount(last - low + 1, minlength=count)
    return np.flatnonzero(np.cumsum(starts - stops)) + low


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
