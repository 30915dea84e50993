from __future__ import annotations

import threading

import pytest

from recurra.data import reader as module
from recurra.data.blocks import BlockSource
from recurra.data.reader import BlockReader
from recurra.errors import DataError, IntegrityError
from recurra.storage.url import open_store


class Gate(BlockSource):
    """A source whose first read of each block waits until it is let through, or fails."""

    def __init__(self, dataset) -> None:
        super().__init__(dataset.url, dataset.manifest)
        self.open = threading.Event()
        self.asked = threading.Semaphore(0)
        self.seen: set[int] = set()
        self.error: Exception | None = None

    def read(self, blocks, next_use=None):
        first = blocks[0] not in self.seen
        self.seen.update(blocks)
        self.asked.release()
        if first:
            assert self.open.wait(10)
            if self.error:
                raise self.error
        return super().read(blocks)


@pytest.fixture
def dataset(make):
    return make([20] * 60)


@pytest.fixture
def reader(dataset):
    reader = BlockReader(BlockSource(dataset.url, dataset.manifest), threads=2)
    yield reader
    reader.close()


@pytest.fixture
def impatient(monkeypatch):
    """Anything is asked for again at once."""
    monkeypatch.setattr(module, "_HEDGE_S", 0.0)
    monkeypatch.setattr(module, "_FACTOR", 0.0)


def test_blocks_come_in_any_order(dataset, reader):
    futures = reader.submit([7, 0, 3])

    for block, future in futures.items():
        first = int(dataset.manifest.blocks["steps"][:block].sum())
        assert future.result(10).time["step"][0] == first + 1


def test_what_was_asked_is_done_in_the_readers_thread(dataset, reader):
    future = reader.submit([1], lambda block, rows: (block, rows.steps))[1]

    assert future.result(10) == (1, int(dataset.manifest.blocks["steps"][1]))


def test_an_error_reaches_who_waits(dataset, reader):
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


def test_what_waits_is_cancelled_at_the_end(dataset):
    """A long queue must not keep a process that wants to end."""
    source = Gate(dataset)
    reader = BlockReader(source, threads=1)
    first = reader.submit([0])[0]
    assert source.asked.acquire(timeout=60)
    waiting = reader.submit([4])[4]

    reader.close()
    source.open.set()

    assert waiting.cancelled()
    assert first.result(10).steps > 0


def test_a_slow_request_is_made_again_and_the_first_answer_counts(dataset, impatient):
    """One connection of a thousand stalls; a batch must not wait for it."""
    source = Gate(dataset)
    reader = BlockReader(source, threads=1)
    future = reader.submit([0])[0]
    assert source.asked.acquire(timeout=60)

    reader.hedge(0)

    assert future.result(10).steps > 0
    assert reader.hedged == 1
    reader.hedge(0)
    assert reader.hedged == 1
    source.open.set()
    reader.close()


def test_patience_grows_with_the_store(dataset):
    """A store that is slow for everybody is not asked twice."""
    source = Gate(dataset)
    reader = BlockReader(source, threads=1)
    reader.submit([0])
    assert source.asked.acquire(timeout=60)

    reader.hedge(0)
    reader.hedge(99)

    assert reader.hedged == 0
    source.open.set()
    reader.close()


def test_an_attempt_that_fails_does_not_spoil_the_other(dataset, impatient):
    source = Gate(dataset)
    source.error = DataError("the first attempt broke")
    reader = BlockReader(source, threads=1)
    future = reader.submit([0])[0]
    assert source.asked.acquire(timeout=60)
    source.seen.clear()  # the second attempt waits, too

    reader.hedge(0)
    assert source.asked.acquire(timeout=60)
    source.open.set()

    with pytest.raises(DataError, match="the first attempt broke"):  # both failed: only then it is an error
        future.result(10)
    reader.close()
