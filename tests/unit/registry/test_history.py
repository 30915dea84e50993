from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recurra.errors import IntegrityError, RegistryError
from recurra.registry.history import Change, History, before
from recurra.storage.url import open_store
from recurra.vocabulary import Digest

steps = st.lists(
    st.tuples(st.sampled_from(["a", "b"]), st.sampled_from(["d1", "d2", "d3", "rollback"])),
    max_size=12,
)


@given(steps=steps)
@settings(deadline=None, max_examples=40)
def test_rollbacks_take_back_promotions_one_by_one(tmp_path_factory, steps):
    """The law: an alias is a stack of promotions, however those of other aliases come in between."""
    history = History(open_store(f"file://{tmp_path_factory.mktemp('history')}"))
    stacks: dict[str, list[str]] = {"a": [], "b": []}
    for alias, what in steps:
        stack = stacks[alias]
        if what != "rollback":
            history.append(Change("promote", alias, "ada", ""), "", lambda last, what=what: Digest(what))
            stack.append(what)
        elif (digest := before(history.entries(), alias)) is not None:
            history.append(Change("rollback", alias, "ada", ""), "", lambda last, digest=digest: digest)
            stack.pop()
        else:
            assert len(stack) < 2
    last = history.last()

    assert (last.aliases if last else {}) == {alias: stack[-1] for alias, stack in stacks.items() if stack}
    assert [entry.number for entry in history.entries()] == list(range(1, len(history.entries()) + 1))


@pytest.mark.parametrize(("place", "writers"), [("local_url", 8), ("s3_url", 3)])
def test_promotions_at_the_same_moment_lose_nothing(request, place, writers):
    """Two runs that end together each set their own alias, and both must be set afterwards."""
    url = request.getfixturevalue(place)

    def promote(index: int) -> Digest | None:
        change = Change("promote", f"alias-{index}", f"run-{index}", "")
        return History(open_store(url)).append(change, "", lambda last: Digest(f"d{index}"))

    with ThreadPoolExecutor(writers) as pool:
        digests = list(pool.map(promote, range(writers)))
    history = History(open_store(url))
    last = history.last()

    assert digests == [f"d{index}" for index in range(writers)]
    assert last is not None
    assert last.aliases == {f"alias-{index}": f"d{index}" for index in range(writers)}
    assert sorted(entry.actor for entry in history.entries()) == [f"run-{index}" for index in range(writers)]


def test_a_broken_entry_is_named(local_url):
    """Somebody who edited it by hand has to know where."""
    store = open_store(local_url)
    store.write("history/000001.json", b"{")

    with pytest.raises(IntegrityError, match=r"history/000001\.json is no entry of a history"):
        History(store).last()


def test_an_entry_of_another_format_says_so(local_url):
    """A newer program may have promoted meanwhile."""
    store = open_store(local_url)
    History(store).append(Change("promote", "a", "ada", ""), "", lambda last: Digest("d"))
    text = store.read("history/000001.json").replace(b'"format_version": 1', b'"format_version": 2')
    store.write("history/000001.json", text)

    with pytest.raises(RegistryError, match="is of format 2, and this version of Recurra reads format 1"):
        History(store).last()


def test_other_files_in_the_folder_do_not_count(local_url):
    """A note that somebody left there is not a promotion."""
    store = open_store(local_url)
    store.write("history/README.txt", b"hello")

    assert History(store).last() is None
