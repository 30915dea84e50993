from __future__ import annotations

import pytest

from recurra.data import reader as module
from recurra.data.reader import BlockReader
from recurra.errors import IntegrityError
from recurra.storage.local import LocalStore
from recurra.storage.url import open_store


@pytest.fixture
def dataset(make):
    return make([20] * 60)


@pytest.fixture
def reader(dataset):
    reader = BlockReader(dataset.url, dataset.manifest, threads=2)
    yield reader
    reader.close()


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


def test_blocks_come_in_any_order(dataset, reader):
    futures = reader.submit([7, 0, 3])

    for block, future in futures.items():
        first = int(dataset.manifest.blocks["steps"][:block].sum())
        assert future.result(10).time["step"][0] == first + 1


def test_neighbours_share_a_request(dataset, reader, reads):
    """A request costs a millisecond however small it is."""
    count = len(dataset.manifest.shards[0].blocks)

    [future.result(10) for future in reader.submit(range(count + 1)).values()]

    assert [length for _, _, length in sorted(reads)] and len(reads) == 2
    assert sum(length for _, _, length in reads) == int(dataset.manifest.blocks["bytes"][: count + 1].sum())


def test_a_request_has_a_largest_size(dataset, reader, reads, monkeypatch):
    """Several connections fetch a window faster than one."""
    monkeypatch.setattr(module, "REQUEST_BYTES", 2 * int(dataset.manifest.blocks["bytes"][0]))

    [future.result(10) for future in reader.submit(range(4)).values()]

    assert len(reads) == 2


def test_what_was_asked_is_done_in_the_readers_thread(dataset, reader):
    future = reader.submit([1], lambda block, rows: (block, rows.steps))[1]

    assert future.result(10) == (1, int(dataset.manifest.blocks["steps"][1]))


def test_an_altered_block_says_which(dataset, reader):
    shard = dataset.manifest.shards[1]
    store = open_store(dataset.url)
    data = bytearray(store.read(shard.key))
    data[int(shard.blocks[0]["offset"]) + 50] ^= 4
    store.write(shard.key, bytes(data))
    number = len(dataset.manifest.shards[0].blocks)

    with pytest.raises(IntegrityError, match=f"Block 0 of {dataset.url}/{shard.key} was altered"):
        reader.submit([number])[number].result(10)


def test_a_closed_reader_cancels(reader):
    """A prefetcher that has not heard of the end yet must not start threads again."""
    reader.close()

    assert reader.submit([0])[0].cancelled()


def test_a_small_dataset_is_fetched_once(dataset, reads):
    """Ten epochs of a dataset that fits into memory are one on the network."""
    reader = BlockReader(dataset.url, dataset.manifest, threads=2, keep_bytes=1 << 20)
    for _ in range(3):
        [future.result(10) for future in reader.submit(range(8)).values()]
    reader.close()

    assert sum(length for _, _, length in reads) == int(dataset.manifest.blocks["bytes"][:8].sum())
