from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from recurra.data.order import BlockOrder, Seed, order_blocks, ranges, running


@given(st.integers(1, 2000), st.integers(0, 2**63 - 1), st.integers(0, 100))
def test_a_permutation_holds_each_number_once(count, seed, epoch):
    assert sorted(Seed("d", seed, epoch).permutation("rows", 0, count).tolist()) == list(range(count))


def test_one_order_is_pinned():
    """A checkpoint of last year must find its data in the same order: this list may never change."""
    assert Seed("digest", 3, 1).permutation("rows", 2, 12).tolist() == [11, 3, 10, 2, 7, 9, 8, 0, 4, 6, 5, 1]


def test_orders_differ_by_everything_they_depend_on():
    base = Seed("digest", 0, 0).permutation("rows", 0, 50).tolist()

    others = [
        Seed("other", 0, 0).permutation("rows", 0, 50),
        Seed("digest", 1, 0).permutation("rows", 0, 50),
        Seed("digest", 0, 1).permutation("rows", 0, 50),
        Seed("digest", 0, 0).permutation("blocks", 0, 50),
        Seed("digest", 0, 0).permutation("rows", 1, 50),
    ]

    assert all(other.tolist() != base for other in others)


def test_every_place_is_equally_likely():
    """A biased shuffle shows the same sequences early in every epoch."""
    firsts = [int(Seed("digest", 0, epoch).permutation("rows", 0, 4)[0]) for epoch in range(2000)]

    assert np.bincount(firsts, minlength=4).min() > 430


def test_every_block_comes_once_and_pieces_stay_together(mixed):
    table = mixed.manifest.blocks

    order = order_blocks(mixed.manifest, Seed(mixed.digest, 0, 0), shuffle=True)

    assert sorted(order.blocks.tolist()) == list(range(len(table)))
    assert order.blocks.tolist() != list(range(len(table)))
    for place, block in enumerate(order.blocks.tolist()):
        if table["continued"][block]:
            assert order.blocks[place - 1] == block - 1


def test_in_order_is_the_manifests_order(mixed):
    order = order_blocks(mixed.manifest, Seed(mixed.digest, 0, 0), shuffle=False)

    assert order.blocks.tolist() == list(range(len(mixed.manifest.blocks)))


def test_sequences_are_found_with_all_their_pieces():
    """The last sequence asked for may go on for several blocks."""
    table = np.zeros(5, [("sequences", np.int64), ("steps", np.int64)])
    table["sequences"] = [2, 1, 0, 0, 3]
    table["steps"] = [5, 9, 9, 2, 4]
    order = BlockOrder(table, np.arange(5))

    assert order.places_of_sequences(0, 2) == (0, 1)
    assert order.places_of_sequences(1, 3) == (0, 4)
    assert order.places_of_sequences(2, 3) == (1, 4)
    assert order.places_of_sequences(3, 6) == (4, 5)
    assert order.place_of_step(np.array([0, 4, 5, 22, 24, 25])).tolist() == [0, 0, 1, 2, 3, 4]


def test_running_sums_start_at_zero():
    assert running(np.array([2, 3])).tolist() == [0, 2, 5]


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=6))
def test_ranges_end_to_end(pairs):
    first = np.array([low for low, _ in pairs], np.int64)
    counts = np.array([count for _, count in pairs], np.int64)

    expected = [number for low, count in pairs for number in range(low, low + count)]

    assert ranges(first, first + counts).tolist() == expected
