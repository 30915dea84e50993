from __future__ import annotations

import pytest

from recurra.data import blocks as module
from recurra.data.blocks import BlockSource
from recurra.data.cache import BlockCache
from recurra.errors import IntegrityError
from recurra.storage.local import LocalStore
from recurra.storage.url import open_store


@pytest.fixture
def dataset(make):
    return make([20] * 60)


@pytest.fixture
def reads(monkeypatch):
    """Every range that is asked of the store."""
    asked = []
    read = LocalStore.read

    def note(self, key, start=0, length=None):
        asked.append((key, start, length))
        return read(self, key, start, length)

    monkeypatch.setattr(LocalStore, "read", note)
    return asked


def first_steps(dataset, blocks):
    return [int(dataset.manifest.blocks["steps"][:block].sum()) + 1 for block in blocks]


def test_neighbours_share_a_request(dataset, reads):
    """A request costs a millisecond however small it is; another shard is another object."""
    count = len(dataset.manifest.shards[0].blocks)

    found = BlockSource(dataset.url, dataset.manifest).read(range(count + 1))

    assert [rows.time["step"][0] for rows in found] == first_steps(dataset, range(count + 1))
    assert len(reads) == 2
    assert sum(length for _, _, length in reads) == int(dataset.manifest.blocks["bytes"][: count + 1].sum())


def test_a_request_has_a_largest_size(dataset, monkeypatch):
    """Several connections fetch a window faster than one."""
    monkeypatch.setattr(module, "REQUEST_BYTES", 2 * int(dataset.manifest.blocks["bytes"][0]))

    assert BlockSource(dataset.url, dataset.manifest).requests([0, 1, 2, 3, 5]) == [[0, 1], [2, 3], [5]]


def test_a_small_dataset_is_fetched_once(dataset, reads):
    """Ten epochs of a dataset that fits into memory are one on the network."""
    source = BlockSource(dataset.url, dataset.manifest, keep_bytes=1 << 20)

    for _ in range(3):
        source.read(range(3))

    assert len(reads) == 1


def test_damage_on_the_way_is_cured_by_asking_again(dataset, monkeypatch):
    """A bit that flips in a switch is no reason to stop a run of a week."""
    read, damaged = LocalStore.read, []

    def damage_once(self, key, start=0, length=None):
        data = bytearray(read(self, key, start, length))
        if not damaged:
            damaged.append(key)
            data[len(data) // 2] ^= 1
        return bytes(data)

    monkeypatch.setattr(LocalStore, "read", damage_once)

    found = BlockSource(dataset.url, dataset.manifest).read(range(3))

    assert [rows.time["step"][0] for rows in found] == first_steps(dataset, range(3))
    assert damaged


def test_a_missing_shard_is_named(dataset):
    key = dataset.manifest.shards[0].key
    open_store(dataset.url).delete(key)

    with pytest.raises(IntegrityError, match=f"{key} is gone, though the manifest names it"):
        BlockSource(dataset.url, dataset.manifest).read([0])


def test_the_second_time_comes_from_the_cache(dataset, reads, tmp_path):
    cache = BlockCache(tmp_path / "cache", 1 << 20)
    source = BlockSource(dataset.url, dataset.manifest, cache=cache)

    first = source.read(range(3))
    again = source.read(range(3))

    assert len(reads) == 1
    assert (cache.hits, cache.misses) == (3, 3)
    assert [rows.time["step"].tolist() for rows in again] == [rows.time["step"].tolist() for rows in first]


def test_a_damaged_file_of_the_cache_is_fetched_anew(dataset, reads, tmp_path):
    """Disks lie, too, and a process may have been killed while it wrote."""
    source = BlockSource(dataset.url, dataset.manifest, cache=BlockCache(tmp_path / "cache", 1 << 20))
    source.read([0, 1])
    for path in (tmp_path / "cache").iterdir():
        path.write_bytes(path.read_bytes()[:-1])

    (rows,) = source.read([1])

    assert rows.time["step"][0] == first_steps(dataset, [1])[0]
    assert len(reads) == 2
