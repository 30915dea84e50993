"""A real S3 server behind a proxy that misbehaves: the stream is the same as without faults, or there is one clear error."""

from __future__ import annotations

import random
import threading
from collections import deque
from itertools import islice
from urllib.parse import urlsplit

import pytest

from recurra.data import blocks, prefetch, reader, windows
from recurra.data.dataset import Dataset
from recurra.data.pipeline import Pipeline
from recurra.data.plan import PlanOptions
from recurra.errors import CredentialsError, IntegrityError
from recurra.storage.url import open_store

from ..storage.faulty_proxy import Fault, FaultyProxy, listen
from .small_datasets import real_rows, run, write_lengths

LENGTHS = [20, 3, 150, 7] * 8
MODES = [
    PlanOptions(batch_sequences=8, bucket_window=8, shuffle=False),
    PlanOptions("lanes", batch_sequences=3, window=16),
]


class Sometimes(deque):
    """One fault in `every` requests, at random but the same in each run."""

    def __init__(self, fault: Fault, every: int) -> None:
        super().__init__([fault])
        self._chance = random.Random(1)
        self._every = every
        self.happened = 0

    def popleft(self):
        if self._chance.randrange(self._every):
            return Fault()
        self.happened += 1
        return self[0]


def facts(batches):
    return [(batch.position, real_rows([batch])) for batch in batches]


@pytest.fixture(scope="module")
def listening(s3_server):
    proxy = FaultyProxy(urlsplit(s3_server.endpoint_url).netloc)
    listener = listen(proxy)
    thread = threading.Thread(target=lambda: listener.serve_forever(poll_interval=0.01))
    thread.start()
    yield proxy
    proxy.ended.set()
    listener.shutdown()
    listener.server_close()
    thread.join()


@pytest.fixture
def proxy(listening, monkeypatch):
    """Stands between this process and the server, once the dataset has been written."""
    listening.faults = deque()
    listening.always = Fault()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{listening.port}")
    return listening


@pytest.fixture(autouse=True)
def many_small_requests(monkeypatch):
    """As a large dataset has them."""
    monkeypatch.setattr(blocks, "REQUEST_BYTES", 1)
    monkeypatch.setattr(windows, "_MAX_CHUNK_WINDOWS", 2)


@pytest.fixture
def dataset(s3_url, proxy):
    return write_lengths(s3_url, LENGTHS, block_bytes=1000, shard_bytes=8000)


@pytest.mark.parametrize("options", MODES)
@pytest.mark.parametrize(
    "fault", [Fault(busy=True), Fault(dropped=True), Fault(cut_after=300), Fault(stalled=True)], ids=str
)
def test_the_stream_is_the_same_as_without_faults(dataset, proxy, monkeypatch, options, fault):
    """Neither a skip nor a repeat, and never a hang."""
    monkeypatch.setattr(reader, "_HEDGE_S", 0.05)
    monkeypatch.setattr(reader, "_UNKNOWN_S", 0.1)
    monkeypatch.setattr(prefetch, "_POLL_S", 0.02)
    expected = facts(run(dataset, options))
    proxy.faults = Sometimes(fault, 12)

    with Pipeline(dataset, options, epochs=1, prefetch_bytes=4000) as pipeline:
        assert facts(pipeline) == expected
    assert proxy.faults.happened


@pytest.mark.parametrize("options", MODES)
def test_bits_that_flip_on_the_way_are_noticed_and_cured(dataset, proxy, options):
    """TCP's own checksum lets one in 65536 damaged packets through. Also in the manifest and in the lengths."""
    expected = facts(run(dataset, options))
    ok, flipped = Fault(), Fault(flipped=True)
    proxy.script(ok, flipped, ok, flipped, *[ok] * 25, flipped)

    with Pipeline(Dataset.open(dataset.url), options, epochs=1, prefetch_bytes=1) as pipeline:
        assert facts(pipeline) == expected
    assert len(proxy.faults) == 0


@pytest.mark.parametrize("options", MODES)
def test_a_server_that_restarts_in_the_middle_is_waited_for(dataset, proxy, options):
    expected = facts(run(dataset, options))

    with Pipeline(dataset, options, epochs=1, prefetch_bytes=1) as pipeline:
        seen = facts(islice(pipeline, 2))
        proxy.always = Fault(dropped=True)
        back = threading.Timer(0.5, setattr, (proxy, "always", Fault()))
        back.start()
        seen += facts(pipeline)
        back.join()

    assert seen == expected


@pytest.mark.parametrize("options", MODES)
def test_credentials_that_expire_stop_it_and_new_ones_let_it_go_on(dataset, monkeypatch, options):
    """One clear error, and nothing lost of what was read before."""
    expected = facts(run(dataset, options))

    with Pipeline(dataset, options, epochs=1, prefetch_bytes=1) as pipeline:
        seen = facts(islice(pipeline, 2))
        with monkeypatch.context() as patch:
            patch.setenv("AWS_SECRET_ACCESS_KEY", "expired")
            with pytest.raises(CredentialsError):
                for batch in pipeline:
                    seen += facts([batch])
        seen += facts(pipeline)

    assert seen == expected


def test_a_shard_that_vanished_is_named(dataset):
    key = dataset.manifest.shards[-1].key
    open_store(dataset.url).delete(key)

    with Pipeline(dataset, MODES[0], epochs=1, prefetch_bytes=1) as pipeline, pytest.raises(IntegrityError, match=key):
        list(pipeline)
