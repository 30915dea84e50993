"""Lane and packed batches out of blocks: each lane's steps are copied in long runs, then cut into windows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recurra.data.batch import Batch
from recurra.data.columns import Rows, bytes_per_step
from recurra.data.lanes import Ints, LanePart, LanePlan
from recurra.data.manifest import Manifest
from recurra.data.order import BlockOrder, running
from recurra.data.padded import ranges
from recurra.data.plan import PlanOptions, Position, Share
from recurra.data.stream import Chunk

_CHUNK_BYTES = 1 << 20
_MAX_CHUNK_WINDOWS = 256


class LaneStream:
    """One rank's windows."""

    def __init__(self, manifest: Manifest, options: PlanOptions, plan: LanePlan, share: Share) -> None:
        self.manifest = manifest
        self.options = options
        self.plan = plan
        self.share = share
        self.first_id = running(manifest.blocks["sequences"])
        assert options.window is not None
        row_bytes = options.window * bytes_per_step(manifest.schema)
        each = -(-options.rows // share.world_size)
        self._windows = max(1, min(_MAX_CHUNK_WINDOWS, _CHUNK_BYTES // (row_bytes * each)))

    def batches(self, epoch: int) -> int:
        return self.plan.batches(epoch)

    def chunks(self, position: Position) -> Iterator[LaneChunk]:
        order = self.plan.order(position.epoch)
        while position.at < self.plan.lane_steps:
            chunk = LaneChunk(self, order, self.plan.part(position, self._windows, self.share), position)
            yield chunk
            position = chunk.behind(len(chunk.part.cuts) - 2)

    def prepare(self, chunk: Chunk, place: int, rows: Rows) -> Rows:
        """The block with its rows in the epoch's order."""
        numbers = self.plan.row_order(chunk.epoch, place, len(rows.offsets) - 1)
        if numbers is None:
            return Rows(rows.offsets, rows.time, {})
        lows, highs = rows.offsets[:-1][numbers], rows.offsets[1:][numbers]
        cuts = list(zip(lows.tolist(), highs.tolist(), strict=True))
        time = {name: np.concatenate([values[low:high] for low, high in cuts]) for name, values in rows.time.items()}
        return Rows(running(highs - lows).astype(np.int32), time, {}, numbers)


class LaneChunk:
    """Some windows of the rank's lanes."""

    def __init__(self, stream: LaneStream, order: BlockOrder, part: LanePart, start: Position) -> None:
        self.stream = stream
        self.order = order
        self.part = part
        self.start = start
        self.epoch = start.epoch
        real = part.end > part.begin
        self.first_place = np.where(real, order.place_of_step(np.where(real, part.begin, 0)), 0)
        behind = np.where(real, order.place_of_step(np.where(real, part.end - 1, 0)) + 1, 0)
        self.behind_place = np.maximum(behind, self.first_place)
        self.places = np.unique(ranges(self.first_place, self.behind_place))

    def behind(self, index: int) -> Position:
        """The position behind window `index`."""
        at = self.start.at + int(self.part.cuts[index + 1])
        return Position(self.epoch, self.start.step + index + 1, 0, at)

    def assemble(self, rows: Mapping[int, Rows]) -> AssembledLanes:
        return AssembledLanes(self, rows)


class AssembledLanes:
    """The steps of a chunk, lane by lane: [rows, steps of all windows + lookahead]."""

    def __init__(self, chunk: LaneChunk, rows: Mapping[int, Rows]) -> None:
        part, schema = chunk.part, chunk.stream.manifest.schema
        self._chunk = chunk
        self._packed = chunk.stream.options.mode == "packed"
        self._lookahead = chunk.stream.options.lookahead
        self._cuts: list[int] = part.cuts.tolist()
        self._tokens: list[int] = part.tokens.tolist()
        self.batches = len(self._cuts) - 1
        shape = (len(part.lanes), self._cuts[-1] + self._lookahead)
        self._time = {
            c.name: np.zeros(shape if c.width is None else (*shape, c.width), c.dtype) for c in schema.time_columns
        }
        self._reset = np.zeros(shape, np.bool_)
        self._ids = np.full((len(part.lanes), self.batches), -1, np.int64)
        for lane in range(len(part.lanes)):
            for place in range(int(chunk.first_place[lane]), int(chunk.behind_place[lane])):
                self._copy(lane, place, rows[place])
        if part.fresh:
            self._reset[part.begin < part.stop, 0] = True
        limit = np.where(part.end - part.begin > 0, part.end - part.begin, 0)
        here = limit[:, None] - part.cuts[None, :-1]
        alive = (part.stop - part.begin)[:, None] > part.cuts[None, :-1]
        self._lengths = np.where(alive, np.minimum(here, np.diff(part.cuts) + self._lookahead), 0)
        self._ids[~alive] = -1

    def batch(self, index: int) -> tuple[Batch, Position]:
        here = slice(self._cuts[index], self._cuts[index + 1] + self._lookahead)
        lengths = np.ascontiguousarray(self._lengths[:, index])
        reset = self._reset[:, here].copy()
        if self._packed:
            reset[lengths > 0, 0] = True
        columns: dict[str, NDArray[Any]] = {name: values[:, here].copy() for name, values in self._time.items()}
        batch = Batch(
            columns=columns,
            lengths=lengths,
            reset=reset,
            ids=np.ascontiguousarray(self._ids[:, index]),
            weight=(lengths > 0).astype(np.float32),
            lanes=None if self._packed else self._chunk.part.lanes,
            epoch=self._chunk.epoch,
            step_in_epoch=self._chunk.start.step + index,
            global_tokens=self._tokens[index],
            position={},
        )
        return batch, self._chunk.behind(index)

    def _copy(self, lane: int, place: int, rows: Rows) -> None:
        """Bring the steps that a lane takes from one place."""
        chunk = self._chunk
        begin, end = int(chunk.part.begin[lane]), int(chunk.part.end[lane])
        base = int(chunk.order.first_step[place])
        low, high = max(begin, base), min(end, base + rows.steps)
        to = slice(low - begin, high - begin)
        for name, values in rows.time.items():
            self._time[name][lane, to] = values[low - base : high - base]
        block = int(chunk.order.blocks[place])
        table = chunk.stream.manifest.blocks
        starts = rows.offsets[:-1].astype(np.int64) + (base - begin)
        if not table["continued"][block]:
            inside = slice(*np.searchsorted(starts, (low - begin, high - begin)))
            self._reset[lane, starts[inside]] = True
        self._note_ids(lane, starts, (low - begin, high - begin), rows, block)

    def _note_ids(self, lane: int, starts: Ints, span: tuple[int, int], rows: Rows, block: int) -> None:
        """Which sequence each window starts in."""
        windows = slice(*np.searchsorted(self._cuts[:-1], span))
        row = np.searchsorted(starts, self._cuts[:-1][windows], "right") - 1
        number = row if rows.numbers is None else rows.numbers[row]
        stream = self._chunk.stream
        first = int(stream.first_id[block]) - int(stream.manifest.blocks["continued"][block])
        self._ids[lane, windows] = first + number
