from __future__ import annotations

import numpy as np
import pytest

from recurra.data.lanes import LanePlan
from recurra.data.plan import PlanOptions, Position, Share


@pytest.fixture
def dataset(make):
    return make([10, 20, 30, 40])


def test_lanes_are_equally_long_and_cover_everything(dataset):
    """Padding only at the very end of the last lane."""
    plan = LanePlan(dataset.manifest, PlanOptions("lanes", batch_sequences=3, window=8))

    part = plan.part(Position(), 1, Share())

    assert part.begin.tolist() == [0, 34, 68]
    assert part.stop.tolist() == [34, 68, 100]
    assert plan.batches(0) == 5


def test_the_last_window_is_what_is_left(dataset):
    plan = LanePlan(dataset.manifest, PlanOptions("lanes", batch_sequences=3, window=8, lookahead=1))

    part = plan.part(Position(0, 3, 0, 24), 10, Share())

    assert part.cuts.tolist() == [0, 8, 10]
    assert part.end.tolist() == [35, 69, 100]
    assert part.tokens.tolist() == [24, 4]


def test_more_lanes_than_steps_leave_some_empty(make):
    plan = LanePlan(make([2, 1]).manifest, PlanOptions("lanes", batch_sequences=5, window=8))

    part = plan.part(Position(), 1, Share())

    assert (part.end - part.begin).tolist() == [1, 1, 1, 0, 0]
    assert part.tokens.tolist() == [3]


def test_ranks_own_neighbouring_lanes_and_mark_what_only_fills(dataset):
    """Carried state moves with its lane when the number of workers changes."""
    plan = LanePlan(dataset.manifest, PlanOptions("lanes", batch_sequences=5, window=8))

    lanes = [plan.part(Position(), 1, Share(rank, 3)).lanes.tolist() for rank in range(3)]

    assert lanes == [[0, 1], [2, 3], [4, -1]]


def test_windows_vary_within_their_spread_and_are_the_same_from_anywhere(dataset):
    """A restored run must cut the stream at the same steps."""
    plan = LanePlan(dataset.manifest, PlanOptions("lanes", batch_sequences=1, window=5, window_spread=3))
    whole = plan.windows(Position(), 1000)
    sizes = np.diff(whole)

    assert whole[-1] == 100
    assert sizes[:-1].min() >= 2
    assert sizes.max() <= 8
    assert len(set(sizes.tolist())) > 3
    assert plan.batches(0) == len(sizes)
    for step in range(len(sizes)):
        at = int(whole[step])
        assert (plan.windows(Position(0, step, 0, at), 3) + at).tolist() == whole[step : step + 4].tolist()


@pytest.mark.parametrize("spread", [0, 1])
def test_windows_grow_in_the_first_epoch(make, spread):
    """From the start to the end of their growth, and the same from anywhere; later epochs begin with whole ones."""
    options = PlanOptions("lanes", batch_sequences=1, window=12, window_start=2, window_growth=10, window_spread=spread)
    plan = LanePlan(make([400]).manifest, options)
    whole = plan.windows(Position(), 1000)
    sizes = np.diff(whole)[:-1]
    grown = [2, 3, 4, 5, 6, 7, 8, 9, 10, 11, *[12] * (len(sizes) - 10)]

    assert np.abs(sizes - grown).max() == spread
    assert plan.batches(0) == len(sizes) + 1 > plan.batches(1)
    assert np.diff(plan.windows(Position(1), 5)).min() >= 12 - spread
    for step in range(len(sizes)):
        at = int(whole[step])
        assert (plan.windows(Position(0, step, 0, at), 3) + at).tolist() == whole[step : step + 4].tolist()


def test_windows_are_drawn_alike_over_the_edge_of_a_draw(make):
    """Draws come 256 at a time, positions anywhere."""
    plan = LanePlan(make([3000]).manifest, PlanOptions("lanes", batch_sequences=1, window=4, window_spread=1))
    whole = plan.windows(Position(), 2000)

    for step in (250, 255, 256, 257, 511, 512):
        at = int(whole[step])
        assert (plan.windows(Position(0, step, 0, at), 20) + at).tolist() == whole[step : step + 21].tolist()
    assert plan.batches(0) == len(whole) - 1


def test_rows_of_a_block_are_shuffled_only_when_asked(dataset):
    shuffled = LanePlan(dataset.manifest, PlanOptions("lanes", batch_sequences=1, window=4))
    ordered = LanePlan(dataset.manifest, PlanOptions("lanes", batch_sequences=1, window=4, shuffle=False))
    offsets = np.arange(0, 110, 10, dtype=np.int32)

    assert ordered.row_order(0, 0, offsets) is None
    assert shuffled.row_order(0, 0, offsets[:2]) is None
    assert sorted(shuffled.row_order(0, 0, offsets).tolist()) == list(range(10))
    assert shuffled.row_order(0, 0, offsets).tolist() != shuffled.row_order(1, 0, offsets).tolist()


def test_short_rows_of_a_large_block_stay_with_their_neighbours(dataset):
    """Copying each by itself would take longer than fetching it; a batch mixes many places anyway."""
    plan = LanePlan(dataset.manifest, PlanOptions("lanes", batch_sequences=1, window=4))

    order = plan.row_order(0, 0, np.arange(0, 1_000_001, 10, dtype=np.int32))

    assert sorted(order.tolist()) == list(range(100_000))
    assert 900 < np.count_nonzero(np.diff(order) != 1) < 1000
