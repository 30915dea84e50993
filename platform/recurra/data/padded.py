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
from recurra.data.order import BlockOrder, running
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
        self.places = np.unique(ranges(self.first_place, last_place + 1))

    def assemble(self, rows: Mapping[int, Rows]) -> AssembledBuckets:
        return AssembledBuckets(self, rows)


class AssembledBuckets:
    """A window's data for one rank: time columns end to end in one buffer, sequence columns in batch order."""

    def __init__(self, chunk: BucketChunk, rows: Mapping[int, Rows]) -> None:
        window, start, schema = chunk.window, chunk.start, chunk.stream.schema
        self.batches = window.batches - start.at
        self._start = start
        self._windows_end = start.part + 1
        self._cuts: list[int] = chunk.cuts.tolist()
        self._each: list[int] = chunk.each.tolist()
        self._longest: list[int] = window.longest[start.at :].tolist()
        self._tokens: list[int] = window.tokens[start.at :].tolist()
        self._lengths = window.lengths[chunk.rows]
        self._ids = window.ids[chunk.rows]
        blocks = [rows[place] for place in chunk.places.tolist()]
        shift = running(np.array([block.steps for block in blocks], np.int64))
        at = np.searchsorted(chunk.places, chunk.first_place)
        self._offsets = shift[at] + window.start[chunk.rows] - chunk.order.first_step[chunk.first_place]
        spare = max(self._longest, default=0)
        self._time = {c.name: _join([block.time[c.name] for block in blocks], c, spare) for c in schema.time_columns}
        in_block = window.sequence[chunk.rows] - chunk.order.first_sequence[chunk.first_place]
        first_row = running(np.array([len(block.offsets) - 1 for block in blocks], np.int64))
        self._sequence = {
            c.name: _pick([block.sequence[c.name] for block in blocks], first_row[at] + in_block, c)
            for c in schema.sequence_columns
        }
        self._weight = self._sequence.get(WEIGHT, np.ones(len(chunk.rows), np.float32)).astype(np.float32, copy=False)
        # Every row starts at its first step: one pattern, as wide as the longest, serves all batches.
        self._reset = np.zeros((max(self._each, default=0), spare), np.bool_)
        self._reset[:, :1] = True

    def batch(self, index: int) -> tuple[Batch, Position]:
        here = slice(self._cuts[index], self._cuts[index + 1])
        longest, each = self._longest[index], self._each[index]
        lengths = self._lengths[here]
        columns: dict[str, NDArray[np.generic]] = {}
        for name, values in self._time.items():
            columns[name] = _fill(gather(values, self._offsets[here], lengths, longest), each)
        for name, values in self._sequence.items():
            columns[name] = _fill(values[here], each)
        batch = Batch(
            columns=columns,
            lengths=_fill(lengths, each),
            reset=self._reset[:each, :longest],
            ids=_fill(self._ids[here], each, -1),
            weight=_fill(self._weight[here], each),
            lanes=None,
            epoch=self._start.epoch,
            step_in_epoch=self._start.step + index,
            global_tokens=self._tokens[index],
            position={},
        )
        return batch, self._behind(index)

    def _behind(self, index: int) -> Position:
        epoch, step = self._start.epoch, self._start.step + index + 1
        if index + 1 == self.batches:
            return Position(epoch, step, self._start.part + 1, 0)
        return Position(epoch, step, self._start.part, self._start.at + index + 1)


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


def ranges(first: Ints, stop: Ints) -> Ints:
    """first[0] to stop[0] - 1, then first[1] to stop[1] - 1, and so on."""
    counts = stop - first
    return np.repeat(first - running(counts)[:-1], counts) + np.arange(counts.sum())


def _join(parts: list[Array], column: Column, spare: int) -> Array:
    """The parts end to end, and `spare` steps of zeros for `gather` to run over."""
    width = () if column.width is None else (column.width,)
    return np.concatenate([*parts, np.zeros((spare, *width), column.dtype)])


def _pick(parts: list[Any], rows: Ints, column: Column) -> NDArray[Any]:
    if column.dtype == "string":
        if not parts:
            return np.zeros(0, object)
        return np.asarray(pa.concat_arrays(parts).take(pa.array(rows)).to_numpy(zero_copy_only=False), object)
    width = () if column.width is None else (column.width,)
    return np.concatenate([*parts, np.zeros((0, *width), column.dtype)])[rows]


def _fill(rows: NDArray[Any], count: int, value: int = 0) -> NDArray[Any]:
    """The rows, and filler up to `count`."""
    if len(rows) == count:
        return rows
    filler = "" if rows.dtype == object else value
    return np.concatenate([rows, np.full((count - len(rows), *rows.shape[1:]), filler, rows.dtype)])
