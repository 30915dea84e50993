from __future__ import annotations

import json

import pytest

from recurra.data import manifest as manifest_module
from recurra.data.dataset import Dataset
from recurra.data.manifest import Manifest, commit, manifest_key, newest_version, read_manifest
from recurra.data.schema import Column, SequenceSchema
from recurra.errors import ConflictError, DataError, IntegrityError, NotFoundError
from recurra.storage.url import open_store

TOKENS = SequenceSchema((Column("tokens", "uint16"),))


def test_it_reads_what_it_wrote(mixed):
    again = Manifest.from_bytes(mixed.manifest.to_bytes(), "m")

    assert again.digest == mixed.manifest.digest
    assert again.schema == mixed.manifest.schema
    assert (again.blocks == mixed.manifest.blocks).all()
    assert again.sequences == 300


def test_it_is_plain_json(mixed):
    """People and other languages can read it."""
    assert json.loads(mixed.manifest.to_bytes())["manifest"]["version"] == 1


@pytest.mark.parametrize("cut", [0, 1, 100, -1])
def test_a_torn_manifest_is_named(mixed, cut):
    with pytest.raises(IntegrityError, match="m.json is torn"):
        Manifest.from_bytes(mixed.manifest.to_bytes()[:cut], "m.json")


def test_one_altered_character_is_noticed(mixed):
    """Valid JSON with another number in it would train on the wrong bytes."""
    data = mixed.manifest.to_bytes()
    altered = data.replace(b'"steps":[', b'"steps":[1', 1)

    with pytest.raises(IntegrityError, match="m.json was altered"):
        Manifest.from_bytes(altered, "m.json")


def test_another_format_is_refused(mixed, monkeypatch):
    """A later Recurra may have moved things; guessing would read nonsense."""
    manifest = Manifest(1, mixed.schema, {}, mixed.manifest.segments)
    with monkeypatch.context() as patch:
        patch.setattr("recurra.data.manifest.FORMAT_VERSION", 2)
        data = manifest.to_bytes()

    with pytest.raises(DataError, match="m.json has format 2; this Recurra reads 1"):
        Manifest.from_bytes(data, "m.json")


def test_the_newest_number_counts(local_url):
    """Other objects under the prefix do not confuse it."""
    store = open_store(local_url)
    for key in (manifest_key(2), manifest_key(10), "manifest-x.json", "manifest-00000011.json.bak"):
        store.write(key, b"")

    assert newest_version(store) == 10


def test_nothing_there_says_where_it_looked(local_url):
    with pytest.raises(NotFoundError, match=f"{local_url} holds no committed dataset"):
        read_manifest(open_store(local_url))


def test_a_shard_that_did_not_arrive_whole_stops_the_commit(make, local_url):
    """The manifest is a promise about bytes that are there."""
    manifest = make([3, 4]).manifest
    store = open_store(local_url)
    for shard in manifest.shards:
        store.write(shard.key, b"short")

    with pytest.raises(DataError, match="has 5 bytes; .* were written"):
        commit(store, manifest.schema, {}, manifest.segments)
    assert newest_version(store) == 0


def test_a_number_that_is_never_free_is_an_error(make, monkeypatch):
    """A store whose listings lie would otherwise keep a writer busy for ever."""
    dataset = make([3, 4])
    monkeypatch.setattr(manifest_module, "newest_version", lambda store: 0)
    monkeypatch.setattr(manifest_module, "_MAX_RACES", 3)

    with pytest.raises(ConflictError, match="another writer was faster 3 times"):
        commit(open_store(dataset.url), dataset.schema, {}, dataset.manifest.segments)


def test_the_digest_tells_datasets_apart(make):
    assert make([3, 4]).digest != make([4, 3]).digest
    assert make([3, 4]).digest == make([3, 4]).digest
    assert len(make([3]).digest) == 64


def test_opening_a_torn_dataset_names_its_manifest(make):
    dataset = make([3, 4])
    store = open_store(dataset.url)
    store.write(manifest_key(1), store.read(manifest_key(1))[:50])

    with pytest.raises(IntegrityError, match=f"{dataset.url}/manifest-00000001.json is torn"):
        Dataset.open(dataset.url)
