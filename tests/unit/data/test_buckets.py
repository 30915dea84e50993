from __future__ import annotations

import tracemalloc
from itertools import chain

import numpy as np
import pytest

from recurra.data.buckets import BucketPlan
from recurra.data.lengths import LengthIndex
from recurra.data.manifest import BLOCK, Manifest, Segment, Shard
from recurra.data.plan import PlanOptions, Share
from recurra.data.schema import Column, SequenceSchema

TOKENS = SequenceSchema((Column("tokens", "uint16"),))


class KnownLengths(LengthIndex):
    """Lengths without a store: block b holds `rows` sequences drawn from its own number."""

    def __init__(self, rows: int) -> None:
        self._rows = rows

    def of_blocks(self, first: int, stop: int):
        return np.concatenate([self.block(number) for number in range(first, stop)])

    def block(self, number: int):
        return np.random.Generator(np.random.Philox(number)).integers(1, 200, self._rows).astype(np.uint32)


def imagine(blocks: int, rows: int) -> tuple[Manifest, KnownLengths]:
    """A manifest of `blocks` blocks that nobody wrote."""
    known = KnownLengths(rows)
    table = np.zeros(blocks, BLOCK)
    table["bytes"] = rows * 200
    table["sequences"] = rows
    table["steps"] = [known.block(number).sum() for number in range(blocks)]
    shards = tuple(Shard(f"{number:064d}", 0, part) for number, part in enumerate(np.array_split(table, 4)))
    return Manifest(1, TOKENS, {}, (Segment(shards, "0" * 64, "uint32"),)), known


def plan_of(options: PlanOptions, blocks: int = 40, rows: int = 500):
    manifest, known = imagine(blocks, rows)
    return BucketPlan(manifest, options, known)


def windows(plan: BucketPlan, epoch: int = 0):
    order = plan.order(epoch)
    return [plan.window(order, epoch, number) for number in range(plan.windows)]


def test_windows_are_about_as_large_as_asked_for():
    """An epoch that ends with a tiny window would pad it badly."""
    plan = plan_of(PlanOptions(batch_sequences=16, bucket_window=4500, shuffle=False))

    assert [len(window.ids) for window in windows(plan)] == [5008, 5008, 5008, 4976]


@pytest.mark.parametrize("batch", [1, 2, 3, 64])
@pytest.mark.parametrize("blocks", [1, 2, 5, 40])
def test_every_sequence_is_in_a_window_however_few_there_are(batch, blocks):
    """A few recordings of an hour each fill many windows by their bytes, and not one batch by their number."""
    manifest, known = imagine(blocks, 1)
    manifest.blocks["bytes"] = 16 << 20
    found = windows(BucketPlan(manifest, PlanOptions(batch_sequences=batch, bucket_window=1), known))

    assert sorted(np.concatenate([window.ids for window in found]).tolist()) == list(range(blocks))
    assert all(len(window.ids) for window in found)


def test_a_shuffled_window_mixes_many_blocks():
    """Sequences written together (one class, one source) must not make up a window."""
    plan = plan_of(PlanOptions(batch_sequences=16, bucket_window=16))

    mixed = [len(np.unique(window.ids // 500)) for window in windows(plan)]

    assert min(mixed[1:]) >= 8
    assert mixed[0] >= 2


def test_the_first_window_is_small_since_somebody_waits_for_it():
    """The first batch needs every block of its window: a quarter of the bytes, but no fewer sequences than asked for."""
    sizes = [len(window.ids) for window in windows(plan_of(PlanOptions(batch_sequences=16, bucket_window=1000)))]
    asked = [len(window.ids) for window in windows(plan_of(PlanOptions(batch_sequences=16, bucket_window=3500)))]

    assert sizes == [1008, 4752, 4752, 4752, 4736]
    assert asked[0] == 3504
    assert sum(sizes) == sum(asked) == 40 * 500


def test_a_batch_holds_about_one_length():
    plan = plan_of(PlanOptions(batch_sequences=16))

    (window, *_) = windows(plan)
    shortest = np.minimum.reduceat(window.lengths, window.cuts[:-1])

    assert np.median(window.longest - shortest) <= 3


def test_batches_of_a_window_come_in_no_order_of_length():
    """Short sequences first would be a curriculum that nobody asked for."""
    (window, *_) = windows(plan_of(PlanOptions(batch_sequences=16)))
    (sorted_window, *_) = windows(plan_of(PlanOptions(batch_sequences=16, shuffle=False)))

    assert abs(np.corrcoef(np.arange(window.batches), window.longest)[0, 1]) < 0.2
    assert (np.diff(sorted_window.longest) >= 0).all()


def test_a_token_budget_is_kept_with_padding():
    """The device's memory is filled by padded steps."""
    found = windows(plan_of(PlanOptions(batch_tokens=1000)))

    for window in found:
        padded = window.longest * np.diff(window.cuts)
        assert padded.max() <= 1000
        assert np.mean(padded) > 850


def test_a_sequence_beyond_the_budget_is_a_batch_of_its_own():
    """Exactly once, also for the one that does not fit."""
    found = windows(plan_of(PlanOptions(batch_tokens=150)))

    too_long = [np.diff(window.cuts)[window.longest > 150] for window in found]

    assert set(np.concatenate(too_long).tolist()) == {1}


def test_the_short_batch_comes_last_and_is_not_always_the_longest():
    """A batch of one very long sequence at each epoch's end would weigh it as much as 64 others."""
    plan = plan_of(PlanOptions(batch_sequences=64), blocks=8, rows=101)
    ends = [windows(plan, epoch)[-1] for epoch in range(20)]

    assert all(np.diff(window.cuts)[-1] == 808 % 64 for window in ends)
    assert all((np.diff(window.cuts)[:-1] == 64).all() for window in ends)
    assert np.mean([window.longest[-1] < 150 for window in ends]) > 0.4


def test_sequences_of_one_length_meet_others_in_each_epoch():
    plan = plan_of(PlanOptions(batch_sequences=16), blocks=8, rows=100)

    groups = [{frozenset(ids.tolist()) for ids in np.split(windows(plan, epoch)[0].ids, 16)} for epoch in range(2)]

    assert len(groups[0] & groups[1]) <= 1


@pytest.mark.parametrize("world_size", [1, 3, 7, 40])
def test_ranks_share_rows_in_order_and_evenly(world_size):
    plan = plan_of(PlanOptions(batch_sequences=16))
    (window, *_) = windows(plan)

    shares = [plan.share(window, Share(rank, world_size)) for rank in range(world_size)]

    for batch in range(window.batches):
        rows = [list(range(first[batch], stop[batch])) for first, stop, _ in shares]
        assert [*chain(*rows)] == list(range(window.cuts[batch], window.cuts[batch + 1]))
        assert {int(each[batch]) for _, _, each in shares} == {-(-16 // world_size)}


def test_a_rank_needs_less_than_half_of_the_blocks():
    """Eight ranks that each fetch everything would need eight times the network."""
    plan = plan_of(PlanOptions(batch_sequences=64))
    (window, *_) = windows(plan)

    needed = []
    for rank in range(8):
        first, stop, _ = plan.share(window, Share(rank, 8))
        ids = np.concatenate([window.ids[low:high] for low, high in zip(first, stop, strict=True)])
        needed.append(len(np.unique(ids // 500)))

    assert sum(needed) < 8 / 2 * len(np.unique(window.ids // 500)), needed


def test_batches_are_counted_without_making_them():
    for options in (PlanOptions(batch_sequences=7), PlanOptions(batch_tokens=900)):
        plan = plan_of(options)
        assert plan.batches(1) == sum(window.batches for window in windows(plan, 1))


def test_a_plan_of_fifty_million_sequences_fits_into_little_memory():
    """Memory is that of a window, never of the dataset; other loaders take gigabytes here."""
    tracemalloc.start()
    try:
        manifest, known = imagine(2500, 20_000)
        plan = BucketPlan(manifest, PlanOptions(batch_sequences=64), known)
        order = plan.order(0)
        for number in (0, plan.windows // 2, plan.windows - 1):
            plan.window(order, 0, number)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

    assert manifest.sequences == 50_000_000
    assert peak < 128 << 20
