"""Lane and packed batches out of blocks: each lane's steps are copied in long runs, then cut into windows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from recurra.data.batch import Batch
from recurra.data.columns import Rows, bytes_per_step, take_rows
from recurra.data.lanes import Ints, LanePart, LanePlan
from recurra.data.manifest import Manifest
from recurra.data.order import BlockOrder, ranges, running
from recurra.data.plan import PlanOptions, Position, Share
from recurra.data.stream import Chunk

_CHUNK_BYTES = 2 << 20
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
        row_bytes = options.window * (bytes_per_step(manifest.schema) + 1)  # one more for reset
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
        numbers = self.plan.row_order(chunk.epoch, place, rows.offsets)
        return Rows(rows.offsets, rows.time, {}) if numbers is None else take_rows(rows, numbers)

    def uses(self, epoch: int) -> NDArray[np.float64]:
        order, lane_steps = self.plan.order(epoch), self.plan.lane_steps
        first, last = order.first_step[:-1] // lane_steps, (order.first_step[1:] - 1) // lane_steps
        each = -(-self.options.rows // self.share.world_size)
        mine = (first < (self.share.rank + 1) * each) & (last >= self.share.rank * each)
        # A block that a lane begins in is needed at once.
        share = np.where(first < last, 0.0, order.first_step[:-1] % lane_steps / lane_steps)
        found = np.empty(len(order.blocks))
        found[order.blocks] = np.where(mine, epoch + share, np.inf)
        return found


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
        starts = _Starts()
        for lane in range(len(part.lanes)):
            for place in range(int(chunk.first_place[lane]), int(chunk.behind_place[lane])):
                self._copy(lane, place, rows[place], starts)
        self._lengths = self._real_steps(part)
        self._weight = (self._lengths > 0).astype(np.float32)
        self._ids = np.where(self._lengths > 0, self._mark(starts, part), -1)
        if part.fresh:
            self._reset[part.begin < part.stop, 0] = True
        self.real: list[int] = self._lengths.sum(axis=1).tolist()

    def behind(self, index: int) -> Position:
        return self._chunk.behind(index)

    def batch(self, index: int, position: dict[str, int | str]) -> Batch:
        here = slice(self._cuts[index], self._cuts[index + 1] + self._lookahead)
        reset = self._reset[:, here].copy()
        if self._packed:
            reset[:, 0] = self._lengths[index] > 0
        return Batch(
            columns={name: values[:, here].copy() for name, values in self._time.items()},
            lengths=self._lengths[index],
            reset=reset,
            ids=self._ids[index],
            weight=self._weight[index],
            lanes=None if self._packed else self._chunk.part.lanes,
            epoch=self._chunk.epoch,
            step_in_epoch=self._chunk.start.step + index,
            global_tokens=self._tokens[index],
            position=position,
        )

    def _copy(self, lane: int, place: int, rows: Rows, starts: _Starts) -> None:
        """Bring the steps that a lane takes from one place, and note which rows they belong to."""
        chunk = self._chunk
        begin, end = int(chunk.part.begin[lane]), int(chunk.part.end[lane])
        base = int(chunk.order.first_step[place])
        low, high = max(begin, base), min(end, base + rows.steps)
        for name, values in rows.time.items():
            self._time[name][lane, low - begin : high - begin] = values[low - base : high - base]
        block = int(chunk.order.blocks[place])
        stream = chunk.stream
        continued = bool(stream.manifest.blocks["continued"][block])
        # From the row that the first step lies in, which may have started before it.
        first, stop = rows.offsets.searchsorted((low - base, high - base - 1), "right").tolist()
        first -= 1
        numbers = np.arange(first, stop) if rows.numbers is None else rows.numbers[first:stop]
        starts.add(
            lane,
            rows.offsets[first:stop].astype(np.int64) + (base - begin),
            numbers + (stream.first_id[block] - continued),
        )
        if continued or base + rows.offsets[first] < low:
            starts.hide_first()

    def _mark(self, starts: _Starts, part: LanePart) -> Ints:
        """Set reset where sequences start; gives [windows, rows] the sequence that each window starts in."""
        windows, count = self.batches, len(part.lanes)
        if not starts.steps:
            return np.full((windows, count), -1, np.int64)
        steps, ids, visible = (np.concatenate(parts) for parts in (starts.steps, starts.ids, starts.visible))
        lanes = np.repeat(starts.lanes, [len(piece) for piece in starts.steps])
        self._reset[lanes[visible], steps[visible]] = True
        # One ascending key for all lanes, so that a single search finds the row of every window.
        width = self._reset.shape[1] + 1
        keys = lanes * width + np.maximum(steps, 0)
        wanted = np.arange(count)[None, :] * width + part.cuts[:-1, None]
        found: Ints = ids[np.maximum(np.searchsorted(keys, wanted, "right") - 1, 0)]
        return found

    def _real_steps(self, part: LanePart) -> Ints:
        """[windows, rows] real steps with lookahead; 0 where the lane has run out."""
        left = (part.end - part.begin)[None, :] - part.cuts[:-1, None]
        alive = (part.stop - part.begin)[None, :] > part.cuts[:-1, None]
        return np.where(alive, np.minimum(left, (np.diff(part.cuts) + self._lookahead)[:, None]), 0)


class _Starts:
    """Rows that lanes run through: where they start, counted from the lane's first step here, and whose they are."""

    def __init__(self) -> None:
        self.lanes: list[int] = []
        self.steps: list[Ints] = []
        self.ids: list[Ints] = []
        self.visible: list[NDArray[np.bool_]] = []

    def add(self, lane: int, steps: Ints, ids: Ints) -> None:
        self.lanes.append(lane)
        self.steps.append(steps)
        self.ids.append(ids)
        self.visible.append(np.ones(len(steps), np.bool_))

    def hide_first(self) -> None:
        """The first row of the last piece began earlier."""
        self.visible[-1][:1] = False
