from __future__ import annotations

import errno
import os
from collections.abc import Callable

import pytest

from recurra.errors import ConfigError, NotFoundError, StorageError
from recurra.storage.local import LocalStore


@pytest.fixture
def store(tmp_path) -> LocalStore:
    return LocalStore(tmp_path / "store")


def refusing(code: int) -> Callable[..., None]:
    def refuse(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    return refuse


def test_a_write_that_fails_leaves_the_old_object_and_nothing_else(store, tmp_path, monkeypatch):
    """A full disk must not cost the checkpoint that was there."""
    store.write("k", b"old")
    monkeypatch.setattr(os, "fsync", refusing(errno.ENOSPC))

    with pytest.raises(StorageError, match="no space left"):
        store.write("k", b"new")
    assert store.read("k") == b"old"
    assert os.listdir(tmp_path / "store") == ["k"]


def test_a_half_written_file_of_a_dead_process_is_not_listed(store, tmp_path):
    """SIGKILL between write and rename leaves a file that nobody asked for."""
    store.write("k", b"1")
    (tmp_path / "store" / ".recurra-0123").write_bytes(b"half")

    assert [info.key for info in store.list()] == ["k"]


def test_without_hard_links_creation_says_what_to_do(store, monkeypatch):
    """Some network file systems have none; overwriting silently would be worse than stopping."""
    monkeypatch.setattr(os, "link", refusing(errno.EPERM))

    with pytest.raises(StorageError, match="without hard links.*Use a directory on another disk"):
        store.create("k", b"1")
    assert list(store.list()) == []


def test_a_file_where_a_folder_is_needed_is_named(store):
    """A directory cannot hold both 'a' and 'a/b', though most buckets can."""
    store.write("a", b"1")

    with pytest.raises(StorageError, match="a file where a folder is needed"):
        store.write("a/b", b"2")
    with pytest.raises(NotFoundError):
        store.read("a/b")


def test_a_folder_is_no_object(store):
    """Reading a prefix by mistake is the same error in both stores."""
    store.write("a/b", b"1")

    with pytest.raises(NotFoundError):
        store.read("a")
    with pytest.raises(NotFoundError):
        store.size("a")
    store.delete("a")
    assert not store.exists("a")
    assert store.read("a/b") == b"1"


def test_a_directory_that_may_not_be_read_is_not_an_empty_one(store, monkeypatch):
    """An empty listing would mean that the dataset does not exist, and a writer would begin it anew."""
    store.write("a/b", b"1")
    monkeypatch.setattr(os, "scandir", refusing(errno.EACCES))

    with pytest.raises(StorageError, match="this user may not read"):
        list(store.list())


def test_a_key_cannot_leave_the_directory(store):
    """Names come from job files and requests."""
    for call in (store.read, store.size, store.delete, store.exists, store.child, lambda key: list(store.list(key))):
        with pytest.raises(ConfigError, match="not a key"):
            call("../../etc/passwd")
