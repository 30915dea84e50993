"""Batches of near lengths, oldest first, within a budget."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from recurra.serving.encode import FILL_ROWS, EncodeQueue
from recurra.serving.work import Sequence


def sequence(length: int) -> Sequence:
    return Sequence(np.zeros(length, np.int64), lambda *_: None)


@settings(deadline=None)
@given(
    lengths=st.lists(st.integers(1, 200), min_size=1, max_size=80),
    budget=st.integers(16, 2000),
    chunk=st.sampled_from([None, 16, 64]),
)
def test_everything_comes_out_once_and_within_the_budget(lengths, budget, chunk):
    """Law: no sequence is lost or doubled, and a batch never exceeds the budget unless it is one sequence alone."""
    queue = EncodeQueue(chunk)
    added = [sequence(length) for length in lengths]
    for item in added:
        queue.add(item)
    seen = []
    while len(queue):
        batch = queue.take(budget)
        assert batch
        assert len(batch) == 1 or max(steps for _, steps in batch) * len(batch) <= budget
        for item, steps in batch:
            assert steps == min(item.remaining, chunk or item.remaining)
            item.position += steps
            if item.remaining:
                queue.add(item)
            else:
                seen.append(item)

    assert sorted(map(id, seen)) == sorted(map(id, added))


@settings(deadline=None)
@given(lengths=st.lists(st.integers(1, 400), min_size=1, max_size=60))
def test_the_oldest_is_always_in_the_next_batch(lengths):
    """Nothing starves, however many others of a better length keep coming."""
    queue = EncodeQueue(None)
    added = [sequence(length) for length in lengths]
    for item in added:
        queue.add(item)
    left = list(added)
    while left:
        batch = [item for item, _ in queue.take(500)]
        assert left[0] in batch
        left = [item for item in left if item not in batch]


def test_a_large_batch_holds_near_lengths_only():
    """Padding a long way costs more than a second forward pass, once a batch is big enough."""
    queue = EncodeQueue(None)
    for _ in range(FILL_ROWS):
        queue.add(sequence(100))
        queue.add(sequence(10))

    assert [steps for _, steps in queue.take(10_000)] == [100] * FILL_ROWS


def test_a_small_batch_is_filled_with_shorter_ones():
    """With few rows the weights are read for nothing: shorter neighbours ride along."""
    queue = EncodeQueue(None)
    for length in (100, 10, 90):
        queue.add(sequence(length))

    assert sorted(steps for _, steps in queue.take(10_000)) == [10, 90, 100]


def test_chunks_are_cut_short_while_others_step():
    """A forward pass may take a share of the tick, not all of it."""
    queue = EncodeQueue(64)
    queue.add(sequence(100))

    assert [steps for _, steps in queue.take(32, longest=32)] == [32]


def test_a_model_that_must_see_the_whole_is_never_cut():
    """Bidirectional and attention models have no state to go on from."""
    queue = EncodeQueue(None)
    queue.add(sequence(100))

    assert [steps for _, steps in queue.take(32, longest=32)] == [100]
    assert queue.take(32) == []


def test_the_removed_are_gone():
    """Cancelled sequences leave the queue, wherever they wait."""
    queue = EncodeQueue(None)
    items = [sequence(length) for length in (5, 50, 6)]
    for item in items:
        queue.add(item)
    queue.remove({items[0], items[1]})

    assert list(queue) == [items[2]] and len(queue) == 1
