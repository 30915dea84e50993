from __future__ import annotations

import pickle

import numpy as np
import pytest

from recurra.data.dataset import Dataset
from recurra.errors import DataError, IntegrityError
from recurra.storage.url import open_store


@pytest.fixture
def dataset(make):
    return make([20, 3, 400, 7] * 5)


def damage(dataset, key, at):
    data = bytearray(open_store(dataset.url).read(key))
    data[at] ^= 1
    open_store(dataset.url).write(key, bytes(data))


def test_each_sequence_is_found_by_its_number(dataset):
    """Also when it lies in several blocks, or behind one that does."""
    for number, row in enumerate(dataset):
        one = row
        assert one["name"] == f"n{number}"
        assert one["label"] == number
        assert len(one["step"]) == [20, 3, 400, 7][number % 4]
        assert all(np.array_equal(one[name], row[name]) for name in one)


@pytest.mark.parametrize("number", [-1, 20])
def test_a_number_outside_is_refused(dataset, number):
    with pytest.raises(DataError, match=f"has no sequence {number}. It has 0 to 19"):
        dataset[number]


def test_facts_come_from_the_manifest(dataset):
    assert len(dataset) == dataset.sequences == 20
    assert dataset.steps == 5 * 430
    assert dataset.lengths().tolist() == [20, 3, 400, 7] * 5
    assert dataset.lengths().dtype == np.uint32


def test_verify_passes_over_everything(dataset):
    told = []

    dataset.verify(lambda done, total: told.append((done, total)))

    total = sum(shard.bytes for shard in dataset.manifest.shards)
    assert told[-1] == (total, total)
    assert len(told) == len(dataset.manifest.shards)


def test_verify_names_the_damaged_block(dataset):
    """A backup of one shard is enough when one knows which."""
    shard = dataset.manifest.shards[1]
    damage(dataset, shard.key, int(shard.blocks[2]["offset"]) + 100)

    with pytest.raises(IntegrityError, match=f"Block 2 of {dataset.url}/{shard.key} was altered"):
        dataset.verify()


def test_verify_notices_damage_outside_the_blocks(dataset):
    shard = dataset.manifest.shards[0]
    damage(dataset, shard.key, shard.bytes - 12)

    with pytest.raises(IntegrityError, match=f"{shard.key} was altered outside its blocks"):
        dataset.verify()


def test_verify_notices_a_cut_shard(dataset):
    shard = dataset.manifest.shards[0]
    open_store(dataset.url).write(shard.key, open_store(dataset.url).read(shard.key)[:-1])

    with pytest.raises(IntegrityError, match=f"has {shard.bytes - 1} bytes; {shard.bytes} were written"):
        dataset.verify()


def test_verify_notices_a_missing_shard(dataset):
    shard = dataset.manifest.shards[0]
    open_store(dataset.url).delete(shard.key)

    with pytest.raises(IntegrityError, match=f"{shard.key} is gone, though the manifest names it"):
        dataset.verify()


def test_verify_notices_damaged_lengths(dataset):
    """They decide which bytes belong to which sequence."""
    key = dataset.manifest.segments[0].lengths_key
    damage(dataset, key, 3)

    with pytest.raises(IntegrityError, match=f"{key} was altered"):
        dataset.verify()
    with pytest.raises(IntegrityError, match=f"{key} was altered"):
        Dataset.open(dataset.url).lengths()


def test_it_pickles_as_an_address(dataset):
    """Ray sends it to workers: no client, no bytes, no key may travel along."""
    data = pickle.dumps(dataset)

    assert pickle.loads(data).digest == dataset.digest
    assert len(data) < 300
