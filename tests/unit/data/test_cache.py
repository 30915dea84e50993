from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recurra.data.cache import BlockCache
from recurra.data.pipeline import Pipeline
from recurra.data.plan import PlanOptions
from recurra.errors import ConfigError

from .small_datasets import real_rows, run


def names(directory):
    return sorted(path.name for path in directory.iterdir())


def test_what_is_needed_last_goes_first(tmp_path):
    """The plan knows the future, so nothing has to be guessed from the past."""
    cache = BlockCache(tmp_path, 30)
    for name, use in (("soon", 1.1), ("late", 1.9), ("middle", 1.5)):
        cache.write(name, bytes(10), use)

    cache.write("next", bytes(10), 1.2)

    assert names(tmp_path) == ["middle", "next", "soon"]


def test_what_is_needed_later_than_all_is_not_kept(tmp_path):
    """Writing it would only push out something better."""
    cache = BlockCache(tmp_path, 20)
    cache.write("a", bytes(10), 1.1)
    cache.write("b", bytes(10), 1.2)

    cache.write("c", bytes(10), 1.3)

    assert names(tmp_path) == ["a", "b"]


def test_a_read_moves_a_block_to_its_next_use(tmp_path):
    cache = BlockCache(tmp_path, 20)
    cache.write("a", b"a" * 10, 1.1)
    cache.write("b", bytes(10), 1.2)

    assert cache.read("a", 2.1) == b"a" * 10
    cache.write("c", bytes(10), 1.3)

    assert names(tmp_path) == ["b", "c"]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abcdefgh"), st.integers(1, 12), st.floats(0, 9)), max_size=30))
def test_the_limit_holds_and_the_books_are_right(tmp_path_factory, events):
    directory = tmp_path_factory.mktemp("cache")
    cache = BlockCache(directory, 25)
    for name, size, use in events:
        if cache.read(name, use) is None:
            cache.write(name, bytes(size), use)

        assert cache.bytes == sum(path.stat().st_size for path in directory.iterdir()) <= 25


def test_an_earlier_process_left_something_useful(tmp_path):
    """A restarted run finds its blocks; what belongs to other datasets goes first."""
    BlockCache(tmp_path, 40).write("mine", bytes(10), 1.0)
    BlockCache(tmp_path, 40).write("foreign", bytes(10), 1.0)

    cache = BlockCache(tmp_path, 20)
    cache.expect({"mine": 0.5, "foreign": 9.0}.__getitem__)
    cache.write("new", bytes(10), 0.7)

    assert names(tmp_path) == ["mine", "new"]


def test_a_smaller_limit_is_kept_from_the_start(tmp_path):
    BlockCache(tmp_path, 40).write("a", bytes(10), 1.0)

    assert BlockCache(tmp_path, 5).bytes == 0
    assert names(tmp_path) == []


def test_what_a_killed_process_did_not_finish_is_swept(tmp_path):
    """Only when it is old: another process may be writing right now."""
    (tmp_path / ".unfinished-old").write_bytes(b"x")
    (tmp_path / ".unfinished-new").write_bytes(b"x")
    os.utime(tmp_path / ".unfinished-old", (0, 0))

    cache = BlockCache(tmp_path, 100)

    assert names(tmp_path) == [".unfinished-new"]
    assert cache.bytes == 0


def test_a_block_that_another_process_removed_is_missed_once(tmp_path):
    cache = BlockCache(tmp_path, 100)
    cache.write("a", bytes(10), 1.0)
    (tmp_path / "a").unlink()

    assert cache.read("a", 2.0) is None
    assert cache.bytes == 0
    cache.write("a", bytes(10), 2.0)
    assert names(tmp_path) == ["a"]


@pytest.mark.parametrize("options", [PlanOptions(batch_sequences=8), PlanOptions("lanes", batch_sequences=4, window=9)])
def test_a_full_disk_only_makes_it_slow(mixed, tmp_path, monkeypatch, options):
    """The stream is the same, and somebody can be told."""
    expected = [real_rows([batch]) for batch in run(mixed, options)]
    cache = BlockCache(tmp_path, 1 << 20)

    def no_space(self, data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", no_space)
    with Pipeline(mixed, options, epochs=1, prefetch_bytes=1, cache=cache) as pipeline:
        assert [real_rows([batch]) for batch in pipeline] == expected

    assert cache.problem == f"{tmp_path}: No space left on device"
    assert cache.bytes == 0


@pytest.mark.parametrize("limit", [1 << 20, 5000, 500])
@pytest.mark.parametrize("options", [PlanOptions(batch_sequences=8), PlanOptions("lanes", batch_sequences=4, window=9)])
def test_a_cache_of_any_size_changes_nothing(mixed, tmp_path, options, limit):
    expected = [batch.position for batch in run(mixed, options)]
    cache = BlockCache(tmp_path, limit)

    with Pipeline(mixed, options, epochs=2, prefetch_bytes=1, cache=cache) as pipeline:
        positions = [batch.position for batch in pipeline]

    assert positions[: len(expected)] == expected
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= limit


def test_half_a_cache_saves_half_of_the_second_epoch(mixed, tmp_path):
    """Least-recently-used would save nothing: it drops each block just before it is needed."""
    total = int(mixed.manifest.blocks["bytes"].sum())
    cache = BlockCache(tmp_path, total // 2)
    options = PlanOptions(batch_sequences=8)

    with Pipeline(mixed, options, epochs=2, prefetch_bytes=1, cache=cache) as pipeline:
        for _ in pipeline:
            pass

    assert cache.hits > 0.4 * len(mixed.manifest.blocks)


def test_a_restarted_run_knows_which_of_its_blocks_come_first(mixed, tmp_path):
    """The cache of the process that was killed is worth as much as its own."""
    total = int(mixed.manifest.blocks["bytes"].sum())
    options = PlanOptions(batch_sequences=8)
    with Pipeline(mixed, options, epochs=1, prefetch_bytes=1, cache=BlockCache(tmp_path, total)) as pipeline:
        list(pipeline)

    cache = BlockCache(tmp_path, total // 2)
    with Pipeline(mixed, options, epochs=1, prefetch_bytes=1, cache=cache) as pipeline:
        list(pipeline)

    assert cache.hits > 0.4 * len(mixed.manifest.blocks)


def test_no_limit_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="limit is 0 bytes"):
        BlockCache(tmp_path, 0)


def test_a_directory_that_cannot_be_used_is_named(tmp_path):
    (tmp_path / "file").write_text("")

    with pytest.raises(ConfigError, match="cache directory .*file/cache cannot be used"):
        BlockCache(tmp_path / "file" / "cache", 10)
