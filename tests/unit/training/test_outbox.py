"""What is written to the store beside the loop."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from recurra.errors import UnreachableError
from recurra.storage.url import open_store
from recurra.training.outbox import Outbox

from .gated import GatedStore


def test_putting_does_not_wait_and_the_newest_content_wins(tmp_path: Path) -> None:
    """A slow store gets fewer objects, not a queue of old ones."""
    store = GatedStore(open_store(f"file://{tmp_path}/log"))
    outbox = Outbox(store)
    store.open.clear()
    for number in range(100):
        outbox.put("tail", b"%d" % number)
        outbox.put("events", b"e%d" % number)
    store.open.set()
    outbox.flush()

    assert (store.read("tail"), store.read("events")) == (b"99", b"e99")
    assert len(store.written) <= 4


def test_a_flushed_outbox_has_no_thread_and_takes_more(tmp_path: Path) -> None:
    """Runs that follow one another in a process leave nothing behind."""
    store = open_store(f"file://{tmp_path}/log")
    outbox = Outbox(store)
    outbox.flush()
    for content in (b"first", b"second"):
        outbox.put("tail", content)
        outbox.flush()
        assert store.read("tail") == content and "outbox" not in {thread.name for thread in threading.enumerate()}


def test_a_store_that_does_not_answer_is_told_of_at_the_end(tmp_path: Path) -> None:
    """The log of a run that ends well must be whole."""

    def fail(key: str) -> None:
        raise UnreachableError("no answer")

    outbox = Outbox(GatedStore(open_store(f"file://{tmp_path}/log"), fail))
    outbox.put("tail", b"lost")
    with pytest.raises(UnreachableError, match="no answer"):
        outbox.flush()
    outbox.flush()
