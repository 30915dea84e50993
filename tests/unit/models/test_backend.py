import pytest

from recurra.models.backend import backend, use_backend


def test_a_choice_ends_with_its_block_also_after_an_error():
    """A benchmark that fails must not leave a service slow."""
    with pytest.raises(ZeroDivisionError), use_backend("eager"):
        assert backend() == "eager"
        1 / 0  # noqa: B018

    assert backend() == "auto"
