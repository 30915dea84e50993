import pytest

from recurra.errors import RegistryError
from recurra.registry.names import check_alias, check_model, split_reference


@pytest.mark.parametrize("name", ["a", "sms-next-word", "Wetter_2.1", "7"])
def test_names_that_people_give_are_accepted(name):
    """The job file's own name is one of them."""
    assert check_model(name) == name


@pytest.mark.parametrize("name", ["", "a b", "a/b", "../x", "-a", "a-", "a@b", "x" * 101, "a\n"])
def test_names_that_would_break_an_address_are_refused(name):
    """They become folders of the store and parts of a URL."""
    with pytest.raises(RegistryError, match="is no name of a model"):
        check_model(name)


@pytest.mark.parametrize("alias", ["beef", "0" * 64, "a b", ""])
def test_an_alias_that_looks_like_a_digest_is_refused(alias):
    """`model@beef` would mean one thing today and another after the next promotion."""
    with pytest.raises(RegistryError, match="is no alias"):
        check_alias(alias)


def test_a_short_word_of_hexadecimal_letters_is_an_alias():
    """Digests are shortened to 4 digits at least, so `a` and `b` of an A/B test are free."""
    assert (check_alias("a"), check_alias("b"), check_alias("production")) == ("a", "b", "production")


def test_a_reference_is_taken_apart_at_the_sign():
    """Both halves are optional in speech, only the second in a reference."""
    assert split_reference("weather") == ("weather", "")
    assert split_reference("weather@production") == ("weather", "production")
    with pytest.raises(RegistryError, match="Write weather@production, or weather alone"):
        split_reference("weather@")
