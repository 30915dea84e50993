"""The laws of the room, over sizes, world sizes, batch sizes and lengths: nothing lost, nothing twice, the same
everywhere, and restored anywhere."""

from __future__ import annotations

import random
from functools import lru_cache

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from recurra.data.dataset import Dataset
from recurra.data.pipeline import build_stream
from recurra.data.plan import PlanOptions, Position, Share

from .small_datasets import new_url, real_rows, run, run_world, write_lengths

LENGTHS = st.one_of(
    st.lists(st.integers(1, 40), min_size=1, max_size=60),
    st.lists(st.sampled_from([1, 2, 300]), min_size=1, max_size=12),
)
SHUFFLE = st.booleans()
BUCKETS = st.one_of(
    st.builds(
        PlanOptions,
        st.just("buckets"),
        batch_sequences=st.integers(1, 13),
        bucket_window=st.integers(1, 40),
        shuffle=SHUFFLE,
    ),
    st.builds(
        PlanOptions,
        st.just("buckets"),
        batch_tokens=st.integers(1, 400),
        bucket_window=st.integers(1, 40),
        shuffle=SHUFFLE,
    ),
)
WINDOWS = st.builds(
    PlanOptions,
    st.sampled_from(["lanes", "packed"]),
    batch_sequences=st.integers(1, 9),
    window=st.integers(3, 20),
    window_start=st.sampled_from([None, 3]),
    window_growth=st.integers(1, 9),
    window_spread=st.integers(0, 2),
    lookahead=st.integers(0, 2),
    shuffle=SHUFFLE,
)
law = settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))


@lru_cache(maxsize=64)
def dataset_of(lengths: tuple[int, ...], block_bytes: int) -> Dataset:
    return write_lengths(new_url(), lengths, block_bytes=block_bytes, shard_bytes=16 * block_bytes)


DATASETS = st.builds(lambda lengths, size: dataset_of(tuple(lengths), size), LENGTHS, st.sampled_from([100, 1000]))


def steps_of(batches, lookahead=0):
    """Every real step that was handed out, window by window."""
    found = []
    for batch in batches:
        window = batch.reset.shape[1] - lookahead
        for row, length in enumerate(np.minimum(batch.lengths, window).tolist()):
            found.extend(batch.columns["step"][row, :length].tolist())
    return found


@law
@given(DATASETS, BUCKETS)
def test_buckets_show_each_sequence_once_and_whole(dataset, options):
    seen = []
    for batch in run(dataset, options):
        for row in np.flatnonzero(batch.ids >= 0).tolist():
            number, length = int(batch.ids[row]), int(batch.lengths[row])
            expected = dataset[number]
            assert batch.columns["step"][row, :length].tolist() == expected["step"].tolist()
            assert batch.columns["pair"][row, :length].tolist() == expected["pair"].tolist()
            assert not batch.columns["step"][row, length:].any()
            assert not batch.columns["pair"][row, length:].any()
            assert batch.columns["label"][row] == number
            assert batch.columns["name"][row] == f"n{number}"
            seen.append(number)
    assert sorted(seen) == list(range(dataset.sequences))


@law
@given(DATASETS, WINDOWS)
def test_windows_show_each_step_once(dataset, options):
    assert sorted(steps_of(run(dataset, options), options.lookahead)) == list(range(1, dataset.steps + 1))


@law
@given(DATASETS, st.one_of(BUCKETS, WINDOWS), st.integers(2, 7))
def test_global_batches_do_not_depend_on_the_world_size(dataset, options, world_size):
    """Otherwise adding a worker would change the gradient."""
    alone = list(run(dataset, options))
    ranks = run_world(dataset, options, world_size)

    assert len(ranks) == len(alone)
    for one, many in zip(alone, ranks, strict=True):
        assert real_rows([one]) == real_rows(many)
        assert len({batch.reset.shape for batch in many}) == 1
        assert many[0].reset.shape[1] == one.reset.shape[1]
        assert {batch.global_tokens for batch in many} == {one.global_tokens}
        assert all(batch.position == one.position for batch in many)


@law
@given(DATASETS, st.one_of(BUCKETS, WINDOWS), st.integers(1, 7), st.integers(1, 7), st.randoms(use_true_random=False))
def test_restored_at_any_step_the_same_follows(dataset, options, before, after, chance: random.Random):
    """Saved under one world size, restored under another: neither a skip nor a repeat."""
    whole = run_world(dataset, options, before)
    step = chance.randrange(len(whole))
    saved = whole[step][0].position

    rest = run_world(dataset, options, after, Position.from_json(saved, dataset.manifest, options))

    assert [real_rows(batches) for batches in rest] == [real_rows(batches) for batches in whole[step + 1 :]]
    assert [batches[0].position for batches in rest] == [batches[0].position for batches in whole[step + 1 :]]


@law
@given(DATASETS, st.one_of(BUCKETS, WINDOWS), st.integers(1, 7))
def test_counts_say_what_is_there(dataset, options, world_size):
    """The loss divides by global_tokens, and the trainer stops at batches_in_epoch."""
    ranks = run_world(dataset, options, world_size)

    assert build_stream(dataset, options, Share()).batches(0) == len(ranks)
    for step, batches in enumerate(ranks):
        assert [batch.step_in_epoch for batch in batches] == [step] * world_size
        assert len(steps_of(batches, options.lookahead)) == batches[0].global_tokens
        assert all(((batch.weight > 0) == (batch.lengths > 0)).all() for batch in batches)
        assert all(((batch.ids >= 0) == (batch.lengths > 0)).all() for batch in batches)


@law
@given(DATASETS, WINDOWS)
def test_a_lane_goes_on_where_it_ended_and_resets_where_a_sequence_starts(dataset, options):
    """What the carried state saw last is the step before the window, unless reset says otherwise."""
    first_steps = set((np.cumsum([0, *dataset.lengths()[:-1].tolist()]) + 1).tolist())
    last: dict[int, int] = {}
    for batch in run(dataset, options):
        window = batch.reset.shape[1] - options.lookahead
        for row in np.flatnonzero(batch.lengths).tolist():
            values = batch.columns["step"][row, : batch.lengths[row]].tolist()
            before = last.get(row)
            for at, (value, reset) in enumerate(zip(values, batch.reset[row], strict=False)):
                starts = value in first_steps or (at == 0 and (options.mode == "packed" or before is None))
                assert bool(reset) == starts
                assert reset or before is None or before + 1 == value
                before = value
            last[row] = values[min(window, len(values)) - 1]
            assert batch.ids[row] == np.searchsorted(np.cumsum(dataset.lengths()), values[0] - 1, "right")


@pytest.mark.parametrize("options", [PlanOptions(batch_sequences=8), PlanOptions("lanes", batch_sequences=4, window=9)])
def test_epochs_differ_and_seeds_too(mixed, options):
    """The same order in each epoch is not a shuffle."""
    orders = [[real_rows([batch]) for batch in run(mixed, options, start=Position(epoch))] for epoch in range(2)]
    other = PlanOptions(**{**options.__dict__, "seed": 1})
    orders.append([real_rows([batch]) for batch in run(mixed, other)])

    assert orders[0] != orders[1]
    assert orders[0] != orders[2]


def test_one_literal_order_is_pinned(make):
    """Whoever changes this list breaks the resume of every run there is: raise PLAN_VERSION with it."""
    dataset = make([3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8], block_bytes=200)
    options = PlanOptions(batch_sequences=4, bucket_window=12, seed=1)

    assert [batch.ids.tolist() for batch in run(dataset, options)] == [[5, 10, 11, 7], [0, 1, 3, 6], [2, 4, 8, 9]]


def test_one_literal_lane_order_is_pinned(make):
    """As above, for lanes."""
    dataset = make([3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8], block_bytes=200)
    options = PlanOptions("lanes", batch_sequences=2, window=8, lookahead=1, seed=1)

    assert [batch.columns["step"][:, 0].tolist() for batch in run(dataset, options)] == [
        [9, 43],
        [3, 51],
        [22, 35],
        [41, 30],
    ]
