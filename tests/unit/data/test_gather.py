from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from recurra.data.columns import Rows
from recurra.data.gather import TimeColumns
from recurra.data.schema import Column, SequenceSchema


@given(
    st.sampled_from(["uint8", "uint16", "float32", "int64"]),
    st.sampled_from([None, 3]),
    st.lists(st.tuples(st.integers(0, 50), st.integers(1, 20)), min_size=1, max_size=9),
)
def test_a_batch_is_a_loop_over_rows(dtype, width, rows):
    """The fast path and the obvious one agree on every type and shape."""
    shape = (70,) if width is None else (70, width)
    values = np.arange(1, np.prod(shape) + 1).astype(dtype).reshape(shape)
    blocks = [Rows(np.array([0, part.shape[0]], np.int32), {"x": part}, {}) for part in (values[:30], values[30:])]
    offsets, lengths = (np.array(part, np.int64) for part in zip(*rows, strict=True))
    columns = TimeColumns(SequenceSchema((Column("x", dtype, width=width),)), blocks, 20)

    found = columns.batch(offsets, lengths, int(lengths.min()), int(lengths.max()))["x"]

    expected = np.zeros((len(rows), lengths.max(), *shape[1:]), dtype)
    for row, (offset, length) in enumerate(rows):
        expected[row, :length] = values[offset : offset + length]
    assert found.dtype == expected.dtype
    assert np.array_equal(found, expected)
    assert found.flags.writeable
    assert found.flags.c_contiguous


def test_a_rank_without_rows_gets_an_empty_batch():
    """More ranks than rows: the shape is there all the same."""
    blocks = [Rows(np.array([0, 3], np.int32), {"x": np.ones(3, np.uint8)}, {})]
    nothing = np.zeros(0, np.int64)

    found = TimeColumns(SequenceSchema((Column("x", "uint8"),)), blocks, 3).batch(nothing, nothing, 1, 3)

    assert found["x"].shape == (0, 3)
