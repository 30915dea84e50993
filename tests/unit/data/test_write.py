from __future__ import annotations

import subprocess
import sys
from subprocess import PIPE

import numpy as np
import pytest

from recurra.data.dataset import Dataset
from recurra.data.schema import Column, SequenceSchema
from recurra.data.vocabulary import ByteVocabulary, build_vocabulary
from recurra.data.write import DatasetWriter
from recurra.errors import ConfigError, DataError, NotFoundError, SchemaError
from recurra.storage.url import open_store

TOKENS = SequenceSchema((Column("tokens", "uint16"),))


def write(url, rows, metadata=None, **sizes):
    with DatasetWriter(url, TOKENS, metadata, **sizes) as writer:
        for row in rows:
            writer.write({"tokens": row})
    return Dataset.open(url)


APPEND = """
import sys
from recurra.data.schema import Column, SequenceSchema
from recurra.data.write import DatasetWriter

writer = DatasetWriter(sys.argv[1], SequenceSchema((Column("tokens", "uint16"),)))
writer.write({"tokens": [int(sys.argv[2])] * 3})
print("ready", flush=True)
sys.stdin.readline()
writer.commit()
"""


def test_what_was_written_is_read(local_url):
    rows = [[1, 2, 3], [4], list(range(500))]

    dataset = write(local_url, rows, block_bytes=64, shard_bytes=256)

    assert [row["tokens"].tolist() for row in dataset] == rows
    assert dataset.lengths().tolist() == [3, 1, 500]
    assert (dataset.sequences, dataset.steps) == (3, 504)


@pytest.mark.parametrize("dtype", [np.uint16, np.int64])
def test_a_caller_may_use_its_buffer_again(local_url, dtype):
    """Rows wait in memory until their block is full."""
    buffer = np.zeros(3, dtype)
    with DatasetWriter(local_url, TOKENS) as writer:
        for value in (1, 2):
            buffer[:] = value
            writer.write({"tokens": buffer})

    assert [row["tokens"].tolist() for row in Dataset.open(local_url)] == [[1] * 3, [2] * 3]


def test_appending_adds_behind(local_url):
    """Sequence ids stay what they were."""
    write(local_url, [[1], [2]])

    dataset = write(local_url, [[3]])

    assert [row["tokens"].tolist() for row in dataset] == [[1], [2], [3]]
    assert dataset.version == 2
    assert Dataset.open(local_url, 1).sequences == 2


def test_two_processes_that_append_at_once_lose_nothing(local_url):
    """Ingest runs on many machines; the last one to commit must not undo the others."""
    processes = [
        subprocess.Popen([sys.executable, "-c", APPEND, local_url, str(value)], stdin=PIPE, stdout=PIPE, text=True)
        for value in range(2)
    ]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in processes:
        process.communicate()

    dataset = Dataset.open(local_url)

    assert [process.returncode for process in processes] == [0, 0]
    assert sorted(row["tokens"][0] for row in dataset) == [0, 1]
    assert dataset.version == 2
    dataset.verify()


def test_writers_that_meet_at_the_commit_both_get_in(local_url):
    """The loser of the race for a number builds on the winner's manifest."""
    first = DatasetWriter(local_url, TOKENS)
    second = DatasetWriter(local_url, TOKENS)
    first.write({"tokens": [1]})
    second.write({"tokens": [2]})

    second.commit()
    first.commit()

    assert [row["tokens"].tolist() for row in Dataset.open(local_url)] == [[2], [1]]


def test_an_exception_leaves_nothing_visible(local_url):
    """A dataset exists once its manifest does, and not before."""
    with pytest.raises(DataError, match="Row 1"), DatasetWriter(local_url, TOKENS, block_bytes=64) as writer:
        writer.write({"tokens": list(range(1000))})
        writer.write({"tokens": [-1]})

    with pytest.raises(NotFoundError, match="holds no committed dataset"):
        Dataset.open(local_url)


def test_an_example_that_is_refused_takes_nothing_with_it(local_url):
    """A caller may count bad rows and go on, also when the fault stands behind several blocks."""
    with DatasetWriter(local_url, TOKENS, block_bytes=64) as writer:
        writer.write({"tokens": [1]})
        with pytest.raises(DataError, match="Row 1.*-1"):
            writer.write({"tokens": [*range(1000), -1]})
        writer.write({"tokens": [2]})

    assert [row["tokens"].tolist() for row in Dataset.open(local_url)] == [[1], [2]]


def test_the_same_rows_give_the_same_dataset(tmp_path):
    """Names are hashes of the content, so that a retry of an ingest stores nothing twice."""
    rows = [[1, 2, 3], list(range(300))]
    one = write(f"file://{tmp_path}/one", rows, block_bytes=64, shard_bytes=256)
    two = write(f"file://{tmp_path}/two", rows, block_bytes=64, shard_bytes=256)

    assert one.digest == two.digest
    keys = [[info.key for info in open_store(f"file://{tmp_path}/{name}").list()] for name in ("one", "two")]
    assert keys[0] == keys[1]


def test_a_long_sequence_is_cut_into_blocks(local_url):
    """A reader holds a block of it at a time, however long it is."""
    dataset = write(local_url, [[7], list(range(1000)), [8]], block_bytes=200, shard_bytes=1000)

    table = dataset.manifest.blocks
    assert table["steps"].max() == 100
    assert table["sequences"].sum() == 3
    assert table["continued"].sum() == 9
    assert len(dataset.manifest.shards) > 1
    assert dataset[1]["tokens"].tolist() == list(range(1000))
    assert dataset[2]["tokens"].tolist() == [8]


def test_a_token_outside_the_vocabulary_is_refused(local_url):
    vocabulary = build_vocabulary("words", ["a b"])

    with pytest.raises(DataError, match="holds 5, outside 0 to 4, the range of its vocabulary"):
        write(local_url, [[4], [5]], {"vocabulary": vocabulary.to_json()})


def test_another_schema_is_refused_before_anything_is_written(local_url):
    write(local_url, [[1]])

    with pytest.raises(SchemaError, match=r"has columns tokens uint16 a step; this writer has x float32\[2\] a step"):
        DatasetWriter(local_url, SequenceSchema((Column("x", "float32", width=2),)))


def test_another_vocabulary_is_refused(local_url):
    """The same numbers would mean other words in the second half."""
    write(local_url, [[1]], {"vocabulary": ByteVocabulary().to_json()})

    with pytest.raises(DataError, match="another 'vocabulary' than this writer has. Append with the dataset's own"):
        DatasetWriter(local_url, TOKENS, {"vocabulary": build_vocabulary("words", ["a"]).to_json()})


def test_metadata_of_an_append_is_joined(local_url):
    write(local_url, [[1]], {"a": 1})

    assert write(local_url, [[1]], {"b": [2]}).metadata == {"a": 1, "b": [2]}


def test_metadata_that_is_not_json_is_refused(local_url):
    with pytest.raises(DataError, match="Metadata must be plain JSON"):
        write(local_url, [[1]], {"model": np.zeros(2)})


def test_an_empty_dataset_is_refused(local_url):
    with pytest.raises(DataError, match="No sequence was written"):
        write(local_url, [])
    assert not list(open_store(local_url).list())


@pytest.mark.parametrize("sizes", [{"block_bytes": 1}, {"block_bytes": 2048, "shard_bytes": 1024}])
def test_sizes_that_cannot_work_are_refused(local_url, sizes):
    with pytest.raises(ConfigError, match="Set block_bytes to 64 or more"):
        DatasetWriter(local_url, TOKENS, **sizes)


def test_shards_and_blocks_keep_their_sizes(local_url):
    """One request fetches a block; one object is a shard."""
    dataset = write(local_url, [list(range(50))] * 200, block_bytes=1000, shard_bytes=8000)

    assert dataset.manifest.blocks["bytes"].max() < 1500
    assert max(shard.bytes for shard in dataset.manifest.shards) < 10000
    assert dataset.manifest.blocks["steps"].sum() == 10000
