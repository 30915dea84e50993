import pytest

from recurra.errors import ConfigError
from recurra.storage.keys import check_key, is_hidden, join


@pytest.mark.parametrize("key", ["a", "a/b.c", "0001/rank-0.safetensors", "Ä ö/+%=&?", ".dot"])
def test_a_name_that_both_stores_can_hold_is_accepted(key):
    """Model and run names come from people, who use more than ASCII."""
    assert check_key(key) == key


@pytest.mark.parametrize("key", ["", "/a", "a/", "a//b", ".", "a/../b", "..", "a\nb", "a\0", "x" * 1025])
def test_a_name_that_could_leave_the_store_is_refused(key):
    """'..' below a directory store would reach other people's files."""
    with pytest.raises(ConfigError, match="not a key of an object"):
        check_key(key)


def test_only_names_of_ours_are_hidden():
    """A user's dot file is data; our half-written file is not."""
    assert is_hidden("a/.recurra-1234")
    assert not is_hidden("a/.hidden")
    assert not is_hidden(".recurra-folder/a")


def test_joining_leaves_no_empty_part():
    """The root of a bucket has no prefix."""
    assert (join("a", "b"), join("", "b"), join("a", "")) == ("a/b", "b", "a")
