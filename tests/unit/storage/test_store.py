"""The law of storage: whatever is done to a store, it equals a dictionary."""

from __future__ import annotations

import pickle
import uuid
from array import array
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from recurra.errors import ConflictError, NotFoundError
from recurra.storage.server import EmbeddedServer
from recurra.storage.store import Store
from recurra.storage.url import open_store

KEYS = ("a", "b-1", "b/1", "b/2", "b/c d", "b0", "d/e/f", "d/e/é+%=&.json")
"""None is a folder of another; '-' sorts before '/', and '0' after it, which folder-wise listings get wrong."""

operations = st.one_of(
    st.tuples(st.sampled_from(["write", "create"]), st.sampled_from(KEYS), st.binary(max_size=40)),
    st.tuples(st.sampled_from(["delete", "size", "exists"]), st.sampled_from(KEYS)),
    st.tuples(st.just("read"), st.sampled_from(KEYS), st.integers(0, 45), st.one_of(st.none(), st.integers(0, 45))),
    st.tuples(st.just("list"), st.sampled_from(["", "b", "b/", "d/e", "nothing", "nothing/at/all"])),
)


def outcome(call: Callable[[], object]) -> object:
    try:
        return call()
    except (ConflictError, NotFoundError) as exc:
        return type(exc)


def on_dict(model: dict[str, bytes], name: str, key: str, *rest: object) -> object:
    """What the operation means."""
    if name == "list":
        return [(k, len(model[k])) for k in sorted(model, key=str.encode) if k.startswith(key)]
    if name == "write" or (name == "create" and key not in model):
        model[key] = rest[0]  # type: ignore[assignment]
        return None
    if name == "create":
        return ConflictError
    if name == "delete":
        model.pop(key, None)
        return None
    if name == "exists":
        return key in model
    if key not in model:
        return NotFoundError
    if name == "size":
        return len(model[key])
    start, length = rest
    return model[key][start : None if length is None else start + length]  # type: ignore[operator,misc]


def on_store(store: Store, name: str, key: str, *rest: object) -> object:
    if name == "list":
        return [(info.key, info.size_bytes) for info in store.list(key)]
    return outcome(lambda: getattr(store, name)(key, *rest))


def check_law(store: Store, steps: list[tuple[object, ...]]) -> None:
    model: dict[str, bytes] = {}
    for step in [*steps, ("list", "")]:
        assert on_store(store, *step) == on_dict(model, *step), step  # type: ignore[arg-type]


@given(steps=st.lists(operations, max_size=20))
@settings(deadline=None, max_examples=60)
def test_a_directory_equals_a_dictionary(tmp_path_factory, steps):
    """Everything above is written against the interface, so both stores have to keep it."""
    check_law(open_store(f"file://{tmp_path_factory.mktemp('law')}/s"), steps)


@given(steps=st.lists(operations, min_size=5, max_size=20))
@settings(deadline=None, max_examples=12, suppress_health_check=[HealthCheck.too_slow])
def test_a_bucket_equals_a_dictionary(s3_server: EmbeddedServer, steps):
    """The same law on the real server; few examples, since each step is a request."""
    check_law(open_store(f"s3://recurra/{uuid.uuid4().hex}"), steps)


@pytest.fixture(params=["local_url", "s3_url"])
def store(request: pytest.FixtureRequest) -> Store:
    return open_store(request.getfixturevalue(request.param))


def test_a_child_is_the_same_place_under_a_longer_prefix(store):
    """Runs, datasets and the registry each get a child and must not see one another."""
    child = store.child("run/7")
    child.write("k", b"1")

    assert store.read("run/7/k") == b"1"
    assert [info.key for info in child.list()] == ["k"]
    assert child.url == store.url + "/run/7"
    assert [info.key for info in store.child("run/77").list()] == []


def test_a_prefix_is_not_a_neighbour_with_a_longer_name(store):
    """`run/7` and `run/70` are different runs."""
    store.child("run/70").write("k", b"1")

    assert [info.key for info in store.child("run/7").list()] == []


def test_a_listing_tells_when_and_how_much(store):
    """Clean-up goes by age, progress by size."""
    store.write("k", b"12345")
    (info,) = store.list()

    assert info.size_bytes == 5
    assert info.modified_s > 1_700_000_000


def test_a_view_of_memory_is_written_without_change(store):
    """Shards arrive as slices of Arrow buffers."""
    store.write("k", memoryview(b"0123456789")[2:5])
    store.write("numbers", memoryview(array("d", [1.0, 2.0])))

    assert store.read("k") == b"234"
    assert store.read("numbers") == array("d", [1.0, 2.0]).tobytes()


def test_of_many_creators_exactly_one_wins(store):
    """Two training jobs that commit manifest 7 at once must not both believe that they did."""
    with ThreadPoolExecutor(4) as pool:
        outcomes = list(pool.map(lambda i: outcome(lambda: store.create("k", b"%d" % i)), range(4)))

    assert outcomes.count(None) == 1
    assert store.read("k") == b"%d" % outcomes.index(None)


def test_a_store_does_not_travel(store):
    """A pickled S3 client would carry credentials into Ray's object store; a url does not."""
    with pytest.raises(TypeError, match="not pickled"):
        pickle.dumps(store)
