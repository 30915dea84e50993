from __future__ import annotations

import multiprocessing
import socket
import threading
from dataclasses import replace

import pytest

from recurra.config.env import S3Settings, s3_settings
from recurra.errors import ConfigError, CredentialsError, StorageError, UnreachableError
from recurra.storage.retry import RetryPolicy
from recurra.storage.s3 import S3Store
from recurra.storage.s3_client import connect
from recurra.storage.url import open_store


def test_no_credentials_at_all_are_told_at_once(s3_url, monkeypatch, tmp_path):
    """The first command of a new user, most often."""
    settings = replace(s3_settings(), access_key=None, secret_key=None)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))

    with pytest.raises(CredentialsError, match="There are no credentials"):
        S3Store(settings, "recurra").read("k")


def test_half_a_key_pair_is_told_before_anything_is_sent():
    """boto3 would otherwise look elsewhere and find somebody else's key."""
    with pytest.raises(CredentialsError, match="AWS_SECRET_ACCESS_KEY"):
        connect(S3Settings("http://127.0.0.1:1", "us-east-1", "only-an-id", None, None))


def test_an_endpoint_that_is_no_address_names_the_variable():
    """`localhost:8333` without http:// is the usual slip."""
    with pytest.raises(ConfigError, match="AWS_ENDPOINT_URL is 'localhost:8333'.*Write an address such as"):
        connect(S3Settings("localhost:8333", "us-east-1", "a", "b", None))


def test_an_endpoint_where_nobody_listens_is_given_up():
    """Never a hang, and the message names the address."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{taken.getsockname()[1]}"
        policy = RetryPolicy(first_contact_s=0.2, first_pause_s=0.02)
        store = S3Store(S3Settings(address, "us-east-1", "a", "b", None), "recurra", policy=policy)

        with pytest.raises(UnreachableError, match=rf"reading s3://recurra/k at {address}.*AWS_ENDPOINT_URL"):
            store.read("k")


def test_an_endpoint_that_takes_the_request_and_says_nothing_is_given_up():
    """A firewall, or a server that hangs: the silence has a limit of its own."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        policy = RetryPolicy(first_contact_s=0.3, read_timeout_s=0.2)
        store = S3Store(S3Settings(address, "us-east-1", "a", "b", None), "recurra", policy=policy)

        with pytest.raises(UnreachableError, match="Read timeout"):
            store.read("k")


def test_an_endpoint_that_is_no_store_is_given_up(tmp_path):
    """A web page on the port answers 200 to everything."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            for _ in range(2):
                connection, _ = listener.accept()
                with connection:
                    connection.recv(65536)
                    connection.sendall(b"HTTP/1.1 404 Not Found\r\nContent-Length: 4\r\nConnection: close\r\n\r\nhey!")

        thread = threading.Thread(target=answer)
        thread.start()
        settings = S3Settings(f"http://127.0.0.1:{listener.getsockname()[1]}", "us-east-1", "a", "b", None)
        with pytest.raises(StorageError):
            S3Store(settings, "recurra", policy=RetryPolicy(deadline_s=0, first_contact_s=0)).size("k")
        thread.join()


def test_stores_of_a_process_share_one_client(s3_url):
    """A client is megabytes and 32 connections; closing one store must not cut the others."""
    one, other = open_store(s3_url), open_store(s3_url).child("x")
    one.write("k", b"1")
    one.close()

    assert connect(s3_settings()) is connect(s3_settings())
    other.write("k", b"2")
    assert one.read("x/k") == b"2"


def test_a_forked_process_has_a_client_of_its_own(s3_url):
    """Two processes on one TLS or HTTP connection read each other's answers."""
    store = open_store(s3_url)
    store.write("k", b"1")
    mine = id(connect(s3_settings()))
    context = multiprocessing.get_context("fork")
    receiving, sending = context.Pipe(duplex=False)
    child = context.Process(target=lambda: sending.send((id(connect(s3_settings())), store.read("k"))))
    child.start()
    theirs, content = receiving.recv()
    child.join()

    assert content == b"1"
    assert theirs != mine


def test_a_certificate_that_is_not_trusted_says_where_to_name_its_authority(tmp_path):
    """Inside companies it is the rule; a minute of retries and 'unreachable' would lead nowhere."""
    with socket.create_server(("127.0.0.1", 0)) as plain:

        def answer() -> None:
            connection, _ = plain.accept()
            with connection:
                connection.recv(1024)
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        settings = S3Settings(f"https://127.0.0.1:{plain.getsockname()[1]}", "us-east-1", "a", "b", None)
        with pytest.raises(ConfigError, match="cannot be trusted.*AWS_CA_BUNDLE.*or write http://"):
            S3Store(settings, "recurra", policy=RetryPolicy(first_contact_s=0)).read("k")
        thread.join()


def test_what_the_client_itself_refuses_is_a_setting():
    """Such as a key of a length that no request can carry; nothing was sent, so nothing is tried again."""
    settings = S3Settings("http://127.0.0.1:1", "us-east-1", "a\n", "b", None)
    store = S3Store(settings, "no/bucket", policy=RetryPolicy(first_contact_s=0))

    with pytest.raises(ConfigError, match="The S3 client refuses s3://no/bucket/k"):
        store.read("k")
