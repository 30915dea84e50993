"""Padded arrays out of blocks: rows end to end in one buffer, then one strided gather for several batches."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from recurra.data.columns import Array, Rows
from recurra.data.order import ranges, running
from recurra.data.schema import Column, SequenceSchema

_BATCHES_A_GATHER = 16

Ints = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Extents:
    """Rows of consecutive batches in the buffer of a window."""

    offsets: Ints
    """[rows] first step."""
    lengths: Ints
    cuts: Ints
    """[batches + 1] first row of each batch."""


class TimeColumns:
    """The time columns of a window's batches.

    They are gathered for several batches of about the same length at once, so that what numpy costs for a call is
    shared by many rows; and by whoever needs them first: the consumer, or `complete` in the background.
    """

    def __init__(self, schema: SequenceSchema, blocks: list[Rows], rows: Extents, longest: Ints) -> None:
        self._rows = rows
        self._longest: list[int] = longest.tolist()
        self._buffers: dict[str, Array] = {}
        spare = max(self._longest, default=0)
        for column in schema.time_columns:
            self._buffers[column.name] = _join([block.time[column.name] for block in blocks], column, spare)
        by_length = np.argsort(longest, kind="stable")
        self._groups = [by_length[at : at + _BATCHES_A_GATHER] for at in range(0, len(longest), _BATCHES_A_GATHER)]
        self._gathered: list[dict[str, Array] | None] = [None] * len(self._groups)
        self._slots = [(0, 0)] * len(longest)
        for number, members in enumerate(self._groups):
            first = running(rows.cuts[members + 1] - rows.cuts[members]).tolist()
            for batch, row in zip(members.tolist(), first, strict=False):
                self._slots[batch] = number, row

    def batch(self, index: int) -> dict[str, Array]:
        """[B, S] or [B, S, F] views of one batch, by column; zero behind each row's end."""
        number, row = self._slots[index]
        gathered = self._gathered[number] or self._gather(number)
        count = int(self._rows.cuts[index + 1] - self._rows.cuts[index])
        return {name: rows[row : row + count, : self._longest[index]] for name, rows in gathered.items()}

    def complete(self) -> None:
        """Gather what nobody has asked for yet, and let the buffers go."""
        for number, gathered in enumerate(self._gathered):
            if gathered is None:
                self._gather(number)
        self._buffers = {}

    def _gather(self, number: int) -> dict[str, Array]:
        """Gather one group; two threads may do so at once, and both get it right."""
        buffers, done = self._buffers, self._gathered[number]
        if done is not None:  # the other thread was faster, and may have let the buffers go
            return done
        members = self._groups[number]
        rows = ranges(self._rows.cuts[members], self._rows.cuts[members + 1])
        offsets, lengths, longest = self._rows.offsets[rows], self._rows.lengths[rows], self._longest[members[-1]]
        gathered = {name: gather(values, offsets, lengths, longest) for name, values in buffers.items()}
        self._gathered[number] = gathered
        return gathered


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


def _join(parts: list[Array], column: Column, spare: int) -> Array:
    """The parts end to end, and `spare` steps of zeros for `gather` to run over."""
    width = () if column.width is None else (column.width,)
    return np.concatenate([*parts, np.zeros((spare, *width), column.dtype)])
