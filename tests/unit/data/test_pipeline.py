from __future__ import annotations

import gc
import multiprocessing
import os
import subprocess
import sys
import threading
import time
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest

from recurra.data.dataset import Dataset
from recurra.data.pipeline import Pipeline
from recurra.data.plan import PlanOptions, Share
from recurra.data.schema import Column, SequenceSchema
from recurra.data.write import DatasetWriter
from recurra.errors import ConfigError, DataError, IntegrityError, NotFoundError
from recurra.storage.local import LocalStore
from recurra.storage.url import open_store

from .small_datasets import real_rows, run

BUCKETS = PlanOptions(batch_sequences=8, bucket_window=32)
LANES = PlanOptions("lanes", batch_sequences=5, window=7, lookahead=1)
MODES = [BUCKETS, PlanOptions(batch_tokens=200), LANES, replace(LANES, mode="packed")]


def facts(batches):
    return [(batch.position, real_rows([batch])) for batch in batches]


def own_threads():
    return {thread for thread in threading.enumerate() if thread.name.startswith("recurra-")}


@pytest.fixture(autouse=True)
def no_thread_is_left():
    """A trainer makes a pipeline for each evaluation."""
    before = own_threads()
    yield
    gc.collect()
    deadline = time.monotonic() + 60
    while own_threads() - before:
        assert time.monotonic() < deadline, own_threads() - before
        threading.Event().wait(0.01)


@pytest.mark.parametrize("options", MODES)
def test_the_threads_give_what_the_plan_says(mixed, options):
    """Reading ahead changes when things happen, never what."""
    with Pipeline(mixed, options, rank=1, world_size=3, epochs=1) as pipeline:
        assert facts(pipeline) == facts(run(mixed, options, Share(1, 3)))


@pytest.mark.parametrize("options", MODES)
def test_a_budget_of_one_byte_only_makes_it_slow(mixed, options):
    """What the next batch needs is fetched whatever the budget says: no deadlock."""
    with Pipeline(mixed, options, epochs=1, prefetch_bytes=1) as pipeline:
        assert facts(pipeline) == facts(run(mixed, options))


@pytest.mark.parametrize("options", MODES)
def test_restore_goes_on_over_the_end_of_an_epoch_and_again(mixed, options):
    """Three generations of resume: users of other loaders lost data at the second."""
    with Pipeline(mixed, options, epochs=2) as pipeline:
        whole = facts(pipeline)
    stops = [3, len(whole) // 2 - 1, len(whole) // 2, len(whole) - 2]

    seen = []
    for start, stop in zip([0, *stops], [*stops, len(whole)], strict=True):
        with Pipeline(mixed, options, epochs=2) as pipeline:
            if seen:
                pipeline.restore(seen[-1][0])
            seen += facts(islice(pipeline, stop - start))

    assert seen == whole


def test_a_loop_that_was_left_goes_on(mixed):
    """Leaving a loop early must not repeat the epoch's start."""
    with Pipeline(mixed, BUCKETS, epochs=1) as pipeline:
        first = facts(islice(pipeline, 4))
        rest = facts(pipeline)

    assert first + rest == facts(run(mixed, BUCKETS))


def test_after_the_last_epoch_it_starts_again(mixed):
    """An evaluation iterates the same pipeline many times."""
    with Pipeline(mixed, BUCKETS, epochs=1) as pipeline:
        assert facts(pipeline) == facts(pipeline) != []


def test_a_restored_pipeline_that_is_over_gives_nothing(mixed):
    """A run that was killed behind its last step has nothing left to do."""
    with Pipeline(mixed, BUCKETS, epochs=1) as pipeline:
        *_, last = pipeline
        pipeline.restore(last.position)
        assert list(pipeline) == []


def test_epochs_do_not_end_by_themselves(mixed):
    with Pipeline(mixed, BUCKETS) as pipeline:
        epochs = [batch.epoch for batch in islice(pipeline, 3 * pipeline.batches_in_epoch(0))]

    assert sorted(set(epochs)) == [0, 1, 2]


def test_another_dataset_refuses_the_position(mixed, make):
    with Pipeline(mixed, BUCKETS) as pipeline:
        position = next(iter(pipeline)).position
    with Pipeline(make([1, 2, 3]), BUCKETS) as other, pytest.raises(ConfigError, match="made with dataset"):
        other.restore(position)


def test_counters_tell_waiting_and_padding(mixed):
    with Pipeline(mixed, BUCKETS, epochs=1) as pipeline:
        padded = sum(batch.reset.size for batch in pipeline)
        assert pipeline.padding == (mixed.steps, padded)
        assert pipeline.wait_s > 0


@pytest.mark.parametrize("options", MODES)
def test_an_altered_shard_stops_the_stream_with_its_name(make, options):
    """Arrow does not notice a flipped bit; a training run would not either."""
    dataset = make([20] * 30)
    shard = dataset.manifest.shards[2]
    block = shard.blocks[1]
    data = bytearray(open_store(dataset.url).read(shard.key))
    data[block["offset"] + block["bytes"] // 2] ^= 1
    open_store(dataset.url).write(shard.key, bytes(data))

    altered = f"Block 1 of {dataset.url}/{shard.key} was altered"
    with Pipeline(dataset, options, epochs=1) as pipeline, pytest.raises(IntegrityError, match=altered):
        list(pipeline)


def test_a_missing_shard_stops_the_stream_with_its_name(make):
    dataset = make([20] * 30)
    open_store(dataset.url).delete(dataset.manifest.shards[0].key)

    with (
        Pipeline(dataset, BUCKETS, epochs=1) as pipeline,
        pytest.raises(IntegrityError, match="is gone, though the manif"),
    ):
        list(pipeline)


def test_missing_lengths_stop_the_stream_with_their_name(make):
    dataset = make([20] * 30)
    open_store(dataset.url).delete(dataset.manifest.segments[0].lengths_key)

    with Pipeline(dataset, BUCKETS, epochs=1) as pipeline, pytest.raises(IntegrityError, match="lengths/.* is gone"):
        list(pipeline)


def test_after_an_error_it_goes_on_where_it_was(make):
    """A shard that was restored from a backup costs no repeat."""
    dataset = make([20] * 30)
    options = PlanOptions(batch_sequences=2, bucket_window=4, shuffle=False)
    expected = facts(run(dataset, options))
    store = open_store(dataset.url)
    saved = {shard.key: store.read(shard.key) for shard in dataset.manifest.shards}
    with Pipeline(dataset, options, epochs=1, prefetch_bytes=1) as pipeline:
        seen = facts(islice(pipeline, 2))
        for key in saved:
            store.write(key, b"")
        with pytest.raises(IntegrityError):
            for batch in pipeline:
                seen += facts([batch])
        for key, data in saved.items():
            store.write(key, data)
        seen += facts(pipeline)

    assert seen == expected


def test_a_forked_child_goes_on_by_itself(mixed):
    """Threads do not survive a fork; a child that waits for them would hang."""
    expected = facts(run(mixed, BUCKETS))
    with Pipeline(mixed, BUCKETS, epochs=1) as pipeline:
        first = facts(islice(pipeline, 2))
        receive, send = multiprocessing.Pipe(duplex=False)
        child = os.fork()
        if not child:
            try:
                send.send([batch.ids.tolist() for batch in pipeline])
            finally:
                os._exit(0)
        assert receive.poll(60)
        in_child = receive.recv()
        os.waitpid(child, 0)
        rest = facts(pipeline)

    assert first + rest == expected
    assert [batch.ids.tolist() for batch in run(mixed, BUCKETS)][2:] == in_child


def test_closing_wakes_who_waits(mixed, monkeypatch):
    """A trainer that is told to stop must not hang in the data."""
    stuck, reached = threading.Event(), threading.Event()

    def wait(*_):
        reached.set()
        stuck.wait(30)
        raise NotFoundError("too late")

    monkeypatch.setattr(LocalStore, "read", wait)
    pipeline = Pipeline(mixed, BUCKETS)
    closer = threading.Thread(target=lambda: (reached.wait(30), pipeline.close()))
    closer.start()

    with pytest.raises(DataError, match="closed while a batch was awaited"):
        next(iter(pipeline))
    closer.join()
    stuck.set()


def test_a_pipeline_that_is_dropped_ends_its_threads(mixed):
    """Nobody has to call close."""
    pipeline = Pipeline(mixed, BUCKETS)
    next(iter(pipeline))
    del pipeline
    # the fixture waits for the threads


UNFINISHED = """
import sys
from recurra.data.dataset import Dataset
from recurra.data.pipeline import Pipeline
from recurra.data.plan import PlanOptions

pipeline = Pipeline(Dataset.open(sys.argv[1]), PlanOptions(batch_sequences=8))
next(iter(pipeline))
print("leaving", flush=True)
"""


def test_a_process_that_ends_in_the_middle_ends_at_once(mixed):
    """Other loaders hang at exit while a thread of theirs waits for the network."""
    process = subprocess.Popen([sys.executable, "-c", UNFINISHED, mixed.url], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "leaving\n"

    assert process.wait(timeout=60) == 0


def test_the_dataset_travels_as_address_and_version(mixed):
    """Ranks must agree on the version, also when somebody appends while they start."""
    rebuild, arguments = mixed.__reduce__()

    assert arguments == (mixed.url, 1)
    assert rebuild(*arguments).digest == mixed.digest


def test_padding_is_small_at_the_lengths_of_chat(tmp_path):
    """Grouping by length is worth more than any other tuning: random batches of these pad 80 %."""
    lengths = np.clip(np.exp(np.random.default_rng(0).normal(np.log(60), 1, 40_000)), 1, 2000).astype(int)
    with DatasetWriter(f"file://{tmp_path}", SequenceSchema((Column("tokens", "uint8"),))) as writer:
        for length in lengths.tolist():
            writer.write({"tokens": np.ones(length, np.uint8)})
    with Pipeline(Dataset.open(f"file://{tmp_path}"), PlanOptions(batch_sequences=64), epochs=1) as pipeline:
        for _ in pipeline:
            pass
        real, padded = pipeline.padding

    assert real == lengths.sum()
    assert 1 - real / padded < 0.04
