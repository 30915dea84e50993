from __future__ import annotations

import pytest

from recurra.data import lengths as module
from recurra.data.dataset import Dataset
from recurra.data.lengths import LengthIndex
from recurra.data.write import DatasetWriter
from recurra.errors import IntegrityError
from recurra.storage.url import open_store

from .small_datasets import SCHEMA, example


@pytest.fixture
def dataset(make):
    """Two segments: what was appended has an index of its own."""
    first = make([5, 300, 7] * 6)
    with DatasetWriter(first.url, SCHEMA, block_bytes=40_000) as writer:
        for number, length in enumerate([9, 70_000, 2]):
            writer.write(example(number, 0, length))
    return Dataset.open(first.url)


@pytest.fixture(params=[1 << 20, 0], ids=["whole", "slices"])
def index(dataset, request, monkeypatch):
    """A small index is kept; of a large one only slices are read."""
    monkeypatch.setattr(module, "_WHOLE_BYTES", request.param)
    return LengthIndex(dataset.url, dataset.manifest)


def test_any_range_of_blocks_has_its_lengths(dataset, index):
    """Over pieces of sequences, shards and segments."""
    every = [5, 300, 7] * 6 + [9, 70_000, 2]
    starts = [0, *dataset.manifest.blocks["sequences"].cumsum().tolist()]
    count = len(dataset.manifest.blocks)
    for first in range(0, count, 7):
        for stop in {first, first + 1, first + 5, count}:
            if stop <= count:
                assert index.of_blocks(first, stop).tolist() == every[starts[first] : starts[stop]]
    assert index.all().tolist() == every


def test_an_altered_length_is_noticed(dataset, index):
    """A wrong length would shift every sequence behind it."""
    key = dataset.manifest.segments[0].lengths_key
    data = bytearray(open_store(dataset.url).read(key))
    data[0] ^= 1
    open_store(dataset.url).write(key, bytes(data))

    with pytest.raises(IntegrityError, match=f"{key} was altered"):
        index.of_blocks(0, 1)


def test_a_missing_index_is_named(dataset, index):
    open_store(dataset.url).delete(dataset.manifest.segments[1].lengths_key)

    with pytest.raises(IntegrityError, match="is gone, though the manifest names it"):
        index.of_blocks(0, len(dataset.manifest.blocks))


def test_each_segment_has_the_narrowest_type(dataset):
    assert [segment.lengths_dtype for segment in dataset.manifest.segments] == ["uint16", "uint32"]
