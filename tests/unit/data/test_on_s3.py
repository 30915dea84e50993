"""The same laws through a real S3 server: what the local tests show must not depend on the kind of store."""

from __future__ import annotations

from itertools import islice

import pytest

from recurra.data.dataset import Dataset
from recurra.data.pipeline import Pipeline
from recurra.data.plan import PlanOptions
from recurra.data.write import DatasetWriter
from recurra.errors import IntegrityError
from recurra.storage.url import open_store

from .small_datasets import SCHEMA, example, real_rows, write_lengths

LENGTHS = [20, 3, 400, 7] * 10
OPTIONS = [PlanOptions(batch_sequences=8, bucket_window=8), PlanOptions("lanes", batch_sequences=3, window=16)]


def facts(batches):
    return [(batch.position, real_rows([batch])) for batch in batches]


@pytest.fixture
def dataset(s3_url):
    return write_lengths(s3_url, LENGTHS, block_bytes=2000, shard_bytes=8000)


@pytest.mark.parametrize("options", OPTIONS)
def test_a_bucket_gives_what_a_directory_gives(dataset, local_url, options):
    """A dataset that moves is the same dataset, and a run on it goes on."""
    local = write_lengths(local_url, LENGTHS, block_bytes=2000, shard_bytes=8000)
    assert dataset.digest == local.digest

    with Pipeline(local, options, epochs=1) as here, Pipeline(dataset, options, epochs=1) as there:
        first = facts(islice(here, 3))
        there.restore(first[-1][0])
        rest = facts(there)
        assert rest == facts(here) != []


def test_writers_that_meet_at_the_commit_both_get_in(dataset):
    """If-None-Match decides who gets a number; the other takes the next."""
    writers = [DatasetWriter(dataset.url, SCHEMA) for _ in range(3)]
    for number, writer in enumerate(writers):
        writer.write(example(number, 0, 3))

    versions = [writer.commit().version for writer in writers]

    assert versions == [2, 3, 4]
    assert Dataset.open(dataset.url).sequences == len(LENGTHS) + 3


def test_a_flipped_byte_is_named(dataset):
    shard = dataset.manifest.shards[0]
    data = bytearray(open_store(dataset.url).read(shard.key))
    data[int(shard.blocks[0]["offset"]) + 200] ^= 1
    open_store(dataset.url).write(shard.key, bytes(data))

    with pytest.raises(IntegrityError, match=f"Block 0 of {dataset.url}/{shard.key} was altered"):
        dataset.verify()
    with Pipeline(dataset, OPTIONS[0], epochs=1) as pipeline, pytest.raises(IntegrityError, match="was altered"):
        list(pipeline)
