from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recurra.data.columns import Rows
from recurra.data.gather import Extents, TimeColumns, gather
from recurra.data.schema import Column, SequenceSchema

SCHEMA = SequenceSchema((Column("tokens", "uint16"), Column("x", "float32", width=2)))
LENGTHS = np.random.default_rng(0).integers(1, 50, 400)
CUTS = np.arange(0, 401, 8)


@given(
    st.sampled_from(["uint8", "uint16", "float32", "int64"]),
    st.sampled_from([(), (3,)]),
    st.lists(st.tuples(st.integers(0, 50), st.integers(1, 20)), min_size=1, max_size=9),
)
def test_gather_is_a_loop_over_rows(dtype, width, rows):
    """The fast path and the obvious one agree on every type and shape."""
    values = np.arange(1, 71 * int(np.prod(width, initial=1)) + 1).astype(dtype).reshape(71, *width)
    offsets, lengths = (np.array(part, np.int64) for part in zip(*rows, strict=True))
    longest = int(lengths.max())

    found = gather(values, offsets, lengths, longest)

    expected = np.zeros((len(rows), longest, *width), dtype)
    for row, (offset, length) in enumerate(rows):
        expected[row, :length] = values[offset : offset + length]
    assert found.dtype == expected.dtype
    assert np.array_equal(found, expected)
    assert found.flags.writeable
    assert found.flags.c_contiguous


@pytest.fixture
def columns():
    """400 rows in 50 batches, each step a number of its own, in two blocks."""
    steps = np.arange(1, LENGTHS.sum() + 1)
    halves = [(0, 200), (200, 400)]
    starts = np.concatenate([[0], np.cumsum(LENGTHS)])
    blocks = []
    for low, high in halves:
        part = steps[starts[low] : starts[high]]
        time = {"tokens": part.astype(np.uint16), "x": np.stack([part, -part], 1).astype(np.float32)}
        blocks.append(Rows((starts[low : high + 1] - starts[low]).astype(np.int32), time, {}))
    extents = Extents(starts[:-1], LENGTHS, CUTS)
    return TimeColumns(SCHEMA, blocks, extents, np.maximum.reduceat(LENGTHS, CUTS[:-1]))


def check(columns, index):
    starts = np.concatenate([[0], np.cumsum(LENGTHS)])
    batch = columns.batch(index)
    rows = range(CUTS[index], CUTS[index + 1])
    assert batch["tokens"].shape == (8, LENGTHS[rows].max())
    for row, number in enumerate(rows):
        length = LENGTHS[number]
        expected = np.arange(starts[number] + 1, starts[number] + 1 + length)
        assert batch["tokens"][row, :length].tolist() == expected.tolist()
        assert not batch["tokens"][row, length:].any()
        assert batch["x"][row, :length].tolist() == np.stack([expected, -expected], 1).tolist()


def test_batches_before_and_after_completion(columns):
    check(columns, 17)
    columns.complete()
    for index in range(50):
        check(columns, index)


def test_the_consumer_may_overtake_the_background(columns):
    """The first batch is handed out while the others are still being gathered."""
    with ThreadPoolExecutor(3) as pool:
        done = [pool.submit(columns.complete), *(pool.submit(check, columns, index % 50) for index in range(200))]
        for future in done:
            future.result(30)
