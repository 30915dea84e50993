import pytest

from recurra.config.load import load_file, nearest, parse
from recurra.config.section import Section
from recurra.errors import ConfigError


class Inner(Section):
    steps: int = 10
    rate: float = 0.1


class Root(Section):
    name: str
    train: Inner = Inner()


def test_an_unknown_key_names_the_nearest_known_one():
    """A typing mistake must not silently train with the default."""
    with pytest.raises(ConfigError, match=r"train\.stepps is not a setting\. Did you mean 'steps'\?"):
        parse({"name": "a", "train": {"stepps": 3}}, Root)


def test_an_override_replaces_one_leaf_and_keeps_the_rest():
    """`-o train.steps=100` is how a run is shortened without a second job file."""
    root = parse({"name": "a", "train": {"rate": 0.5}}, Root, ["train.steps=100"])

    assert (root.train.steps, root.train.rate) == (100, 0.5)


def test_an_override_with_an_unknown_key_is_refused():
    """Overrides are checked like the file: a misspelt one must not be dropped."""
    with pytest.raises(ConfigError, match="Did you mean 'rate'"):
        parse({"name": "a"}, Root, ["train.rat=1"])


def test_a_missing_file_says_what_to_give(tmp_path):
    """The message is all that the user sees."""
    with pytest.raises(ConfigError, match="Give the path of an existing YAML file"):
        load_file(tmp_path / "none.yaml", Root)


@pytest.mark.parametrize(("text", "message"), [("a: [", "not valid YAML"), ("- 1", "not a mapping")])
def test_a_file_that_is_no_mapping_is_refused(tmp_path, text, message):
    """Both come from a wrong indentation and must be told apart from a missing key."""
    file = tmp_path / "job.yaml"
    file.write_text(text)

    with pytest.raises(ConfigError, match=message):
        load_file(file, Root)


def test_every_fault_is_reported_at_once():
    """Fixing a job file one message at a time is a waste of a user's evening."""
    with pytest.raises(ConfigError, match=r"(?s)train\.steps is 'many'.*name is missing|name is missing.*train\.steps"):
        parse({"train": {"steps": "many"}}, Root)


def test_nothing_near_lists_what_is_known():
    """When no key is close, the list is the best help."""
    assert nearest("zzz", ["steps", "rate"]) == "Known here: rate, steps."
