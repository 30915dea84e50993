from __future__ import annotations

import socket
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from recurra.config.env import S3Settings, s3_settings
from recurra.errors import ConfigError, ConflictError, CredentialsError, NotFoundError, StorageError
from recurra.storage import s3
from recurra.storage.retry import RetryPolicy
from recurra.storage.s3 import LARGEST_BYTES, S3Store
from recurra.storage.store import Store
from recurra.storage.url import open_store

from .faulty_proxy import Fault, FaultyProxy

CONTENT = bytes(i * 37 % 251 for i in range(251 * 1200))
"""300 KB in which no two places look alike."""


def calls(store: Store) -> list[object]:
    """Every way to ask a store for something."""
    return [
        lambda: store.read("k"),
        lambda: store.read("k", 1, 2),
        lambda: store.write("k", b"1"),
        lambda: store.create("k", b"1"),
        lambda: list(store.list()),
        lambda: store.size("k"),
        lambda: store.exists("k"),
        lambda: store.delete("k"),
    ]


def test_a_missing_bucket_is_named_by_every_call(s3_server):
    """Without it, a typing mistake in the bucket looks like an empty dataset."""
    for call in calls(open_store("s3://no-such-bucket/x")):
        with pytest.raises(NotFoundError, match="no bucket 'no-such-bucket' at http://127.*Create it"):
            call()


@pytest.mark.parametrize("change", [{"secret_key": "wrong"}, {"access_key": "nobody"}])
def test_wrong_credentials_are_told_at_once(s3_url, change):
    """A minute of retries would not make them right."""
    store = S3Store(replace(s3_settings(), **change), "recurra", "x", RetryPolicy(deadline_s=0, first_contact_s=0))

    for call in calls(store):
        with pytest.raises(CredentialsError, match="Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"):
            call()


def test_a_read_that_is_refused_and_cut_is_exact_and_goes_on(proxy: FaultyProxy, faulty_store: S3Store):
    """The commonest faults at once; what has arrived is not asked for again."""
    faulty_store.write("k", CONTENT)
    proxy.script(Fault(busy=True), Fault(cut_after=200_000), Fault(dropped=True), Fault(cut_after=70_000))

    assert faulty_store.read("k") == CONTENT
    assert [what[1] for what in proxy.seen] == [None, None, "bytes=200000-", "bytes=200000-", "bytes=270000-"]


def test_a_range_that_is_cut_is_exact(proxy: FaultyProxy, faulty_store: S3Store):
    """The end of the range has to stay where it was."""
    faulty_store.write("k", CONTENT)
    proxy.script(Fault(busy=True), Fault(cut_after=100_000), Fault(cut_after=66_000))

    assert faulty_store.read("k", 1000, 250_000) == CONTENT[1000:251_000]
    assert all(what[1] is not None and what[1].endswith("-250999") for what in proxy.seen)


def test_an_answer_that_stalls_is_asked_for_again(proxy: FaultyProxy, faulty_store: S3Store):
    """A connection that died without a word is noticed by its silence."""
    faulty_store.write("k", CONTENT)
    proxy.script(Fault(stalled=True))

    assert faulty_store.read("k") == CONTENT
    assert len(proxy.seen) == 2


@pytest.mark.parametrize("fault", [Fault(busy=True), Fault(dropped=True), Fault(answer_lost=True), Fault(stalled=True)])
def test_a_creation_survives_every_fault(proxy: FaultyProxy, faulty_store: S3Store, fault: Fault):
    """Our own object, written before its answer was lost, is not somebody else's."""
    faulty_store.create("first", b"the probe has run")
    proxy.script(fault)

    faulty_store.create("k", b"mine")

    assert faulty_store.read("k") == b"mine"


@pytest.mark.parametrize("fault", [Fault(busy=True), Fault(dropped=True), Fault(answer_lost=True)])
def test_a_creation_that_came_second_is_told_so_after_every_fault(
    proxy: FaultyProxy, faulty_store: S3Store, fault: Fault
):
    """Even with the same bytes: two jobs that commit equal manifests must not both believe that they won."""
    faulty_store.create("k", b"same")
    proxy.script(fault)

    with pytest.raises(ConflictError, match="somebody else created it first"):
        faulty_store.create("k", b"same")


@pytest.mark.parametrize("fault", [Fault(busy=True), Fault(dropped=True), Fault(answer_lost=True)])
def test_listing_writing_and_deleting_survive_every_fault(proxy: FaultyProxy, faulty_store: S3Store, fault: Fault):
    """Each is safe to repeat."""
    proxy.script(fault)
    faulty_store.write("k", b"1")
    proxy.script(fault)
    assert [info.key for info in faulty_store.list()] == ["k"]
    proxy.script(fault)
    assert faulty_store.size("k") == 1
    proxy.script(fault)
    faulty_store.delete("k")
    assert not faulty_store.exists("k")


def test_a_store_that_ignores_the_condition_is_noticed(proxy: FaultyProxy, faulty_store: S3Store):
    """On such a store, the second of two commits would erase the first without a word."""
    proxy.always = Fault(approved=True)

    with pytest.raises(ConfigError, match="ignores 'If-None-Match.*on bucket 'recurra'.*Set AWS_ENDPOINT_URL"):
        faulty_store.create("k", b"1")
    assert list(faulty_store.list()) == []


def test_the_probe_runs_once_for_a_bucket(proxy: FaultyProxy, faulty_store: S3Store):
    """Three requests before every commit would be two too many."""
    faulty_store.create("a", b"1")
    proxy.script()
    faulty_store.child("deeper").create("b", b"1")

    assert [method for method, _ in proxy.seen] == ["PUT"]


def test_a_listing_of_several_pages_is_whole(s3_url, monkeypatch):
    """A page holds a thousand names; the rest must not be forgotten."""
    monkeypatch.setattr(s3, "PAGE_KEYS", 3)
    store = open_store(s3_url)
    for i in range(8):
        store.write(f"{i}/k", b"")

    assert [info.key for info in store.list()] == [f"{i}/k" for i in range(8)]


def test_a_long_upload_may_take_longer_than_the_limit_of_one_silence():
    """64 MiB over an office line take minutes; what has a limit is the time in which nothing moves."""
    pause = threading.Event()
    size = 32 << 20

    def take_slowly() -> None:
        connection, _ = listener.accept()
        with connection:
            received = 0
            while received < size:
                received += len(connection.recv(128 << 10))
                pause.wait(0.01)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")

    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 << 10)
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        thread = threading.Thread(target=take_slowly, daemon=True)
        thread.start()
        policy = RetryPolicy(first_contact_s=0, connect_timeout_s=10, read_timeout_s=2)
        settings = S3Settings(f"http://127.0.0.1:{listener.getsockname()[1]}", "us-east-1", "a", "b", None)

        S3Store(settings, "recurra", policy=policy).write("k", bytes(size))
        thread.join()


def test_an_object_that_no_request_can_hold_is_refused():
    """Before five gigabytes have been sent."""

    class Huge(bytes):
        def __len__(self) -> int:
            return LARGEST_BYTES + 1

    with pytest.raises(StorageError, match="Split them"):
        S3Store(S3Settings("http://127.0.0.1:1", "us-east-1", "a", "b", None), "recurra").write("k", Huge())


def test_a_print_of_the_store_shows_no_secret(s3_url):
    """It ends in logs."""
    store = open_store(s3_url)

    assert s3_settings().secret_key not in f"{store!r} {vars(store)!r}"
    assert Path(store.url).name in store.url
