"""Memory is that of a window and a budget, never of the dataset or of its longest sequence."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest

from recurra.data.dataset import Dataset
from recurra.data.pipeline import Pipeline
from recurra.data.plan import PlanOptions
from recurra.data.schema import Column, SequenceSchema
from recurra.data.write import DatasetWriter

STEPS = 40_000_000
ALLOWED_BYTES = 16 << 20


@contextmanager
def little_memory() -> Iterator[None]:
    tracemalloc.start()
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < ALLOWED_BYTES


@pytest.fixture(scope="module")
def long_sequence(tmp_path_factory) -> Dataset:
    """One sequence of 40 million steps, written from a file without ever being in memory."""
    path = tmp_path_factory.mktemp("long") / "values.npy"
    values = np.lib.format.open_memmap(path, "w+", np.uint8, (STEPS,))
    values[:] = np.arange(STEPS, dtype=np.uint32) * 7 % 251
    url = f"file://{path.parent}/dataset"
    with (
        little_memory(),
        DatasetWriter(url, SequenceSchema((Column("tokens", "uint8"),)), shard_bytes=2 << 20, block_bytes=1 << 18) as w,
    ):
        w.write({"tokens": np.load(path, mmap_mode="r")})
    return Dataset.open(url)


@pytest.mark.parametrize("mode", ["lanes", "packed"])
def test_a_sequence_of_any_length_streams_in_little_memory(long_sequence, mode):
    """A sensor that has run for years is one sequence."""
    options = PlanOptions(mode, batch_sequences=4, window=10_000)
    seen = 0
    with little_memory(), Pipeline(long_sequence, options, epochs=1, prefetch_bytes=1 << 21) as pipeline:
        for batch in pipeline:
            seen += batch.global_tokens
            assert batch.columns["tokens"][2, 5] == ((2 * STEPS // 4 + batch.step_in_epoch * 10_000 + 5) * 7) % 251

    assert seen == STEPS


def test_many_epochs_need_no_more_than_one(make):
    """A few kilobytes kept for each batch are gigabytes after a week."""
    dataset = make([20] * 200, block_bytes=2000, shard_bytes=20_000)
    options = PlanOptions(batch_sequences=8)
    with Pipeline(dataset, options) as pipeline:
        batches = iter(pipeline)
        for _ in range(5 * pipeline.batches_in_epoch(0)):
            next(batches)
        tracemalloc.start()
        try:
            for _ in range(20 * pipeline.batches_in_epoch(0)):
                next(batches)
            left = tracemalloc.get_traced_memory()[0]
        finally:
            tracemalloc.stop()

    assert left < 500_000
