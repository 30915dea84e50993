"""The real server seen through a proxy that misbehaves as told."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from urllib.parse import urlsplit

import pytest

from recurra.config.env import s3_settings
from recurra.storage.retry import RetryPolicy
from recurra.storage.s3 import S3Store
from recurra.storage.s3_client import connect
from recurra.storage.server import EmbeddedServer

from .faulty_proxy import Fault, FaultyProxy, listen

POLICY = RetryPolicy(deadline_s=60, first_contact_s=60, first_pause_s=0.01, longest_pause_s=0.05, read_timeout_s=2.0)


@pytest.fixture(scope="package")
def listening_proxy(s3_server: EmbeddedServer) -> Iterator[FaultyProxy]:
    """One for all tests, so that they share a client, too."""
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
def proxy(listening_proxy: FaultyProxy) -> FaultyProxy:
    """Stands between `faulty_store` and the real server, and lets everything through until told otherwise."""
    listening_proxy.script()
    listening_proxy.always = Fault()
    return listening_proxy


@pytest.fixture
def faulty_store(proxy: FaultyProxy, s3_url: str) -> S3Store:
    """A store whose requests go through the proxy; it gives up after 60 s and waits 2 s for an answer."""
    settings = replace(s3_settings(), endpoint_url=f"http://127.0.0.1:{proxy.port}")
    connect(settings, POLICY).honest_buckets.clear()
    return S3Store(settings, "recurra", s3_url.removeprefix("s3://recurra/"), POLICY)
