from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recurra.data.dataset import Dataset
from recurra.data.padded import covered
from recurra.data.plan import PlanOptions
from recurra.data.schema import Column, SequenceSchema
from recurra.data.write import DatasetWriter

from .small_datasets import run, run_world


@given(st.lists(st.tuples(st.integers(3, 30), st.integers(0, 9)), max_size=6))
def test_covered_numbers_come_once(pairs):
    first = np.array([low for low, _ in pairs], np.int64)
    last = first + np.array([more for _, more in pairs], np.int64)

    expected = sorted({number for low, more in pairs for number in range(low, low + more + 1)})

    assert covered(first, last).tolist() == expected


def test_a_sequences_own_weight_is_its_weight(local_url):
    """Importance of a sequence is a column like any other; filler weighs nothing."""
    schema = SequenceSchema((Column("tokens", "uint8"), Column("weight", "float32", "sequence")))
    with DatasetWriter(local_url, schema) as writer:
        for number in range(5):
            writer.write({"tokens": [number], "weight": number / 2})

    ranks = run_world(Dataset.open(local_url), PlanOptions(batch_sequences=5, shuffle=False), 2)

    assert [batch.weight.tolist() for batch in ranks[0]] == [[0.0, 0.5, 1.0], [1.5, 2.0, 0.0]]


def test_filler_rows_are_empty(make):
    """They are there to make the ranks equal and must not show up anywhere."""
    (batches,) = run_world(make([3, 3, 3]), PlanOptions(batch_sequences=3), 2)

    last = batches[1]
    assert last.lengths.tolist() == [3, 0]
    assert last.ids[1] == -1
    assert last.columns["name"].tolist()[1] == ""
    assert not last.columns["step"][1].any()


def test_more_ranks_than_rows_give_each_a_batch(make):
    """A rank without a batch would wait in the all-reduce for ever."""
    (batches,) = run_world(make([3, 2]), PlanOptions(batch_sequences=2), 5)

    assert [batch.columns["step"].shape for batch in batches] == [(1, 3)] * 5
    assert [int(batch.lengths.sum()) for batch in batches] == [3, 2, 0, 0, 0] or [2, 3, 0, 0, 0]


def test_every_row_starts_its_sequence(make):
    (batch,) = run(make([3, 2]), PlanOptions(batch_sequences=2))

    assert batch.reset[:, 0].all()
    assert not batch.reset[:, 1:].any()
    assert batch.lanes is None


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "uint32", "int32", "int64", "float32"])
def test_columns_keep_their_narrow_type(local_url, dtype):
    """Widening eight-fold on the host would cost eight times the bus; the device does it."""
    with DatasetWriter(local_url, SequenceSchema((Column("values", dtype),))) as writer:
        writer.write({"values": [1, 2]})

    (batch,) = run(Dataset.open(local_url), PlanOptions(batch_sequences=1))

    assert batch.columns["values"].dtype == dtype
