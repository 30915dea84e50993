import pytest

from recurra.config.load import parse
from recurra.errors import ConfigError
from recurra.registry.config import PublishConfig


def test_a_model_alone_is_enough():
    """The registry of the demo, and no alias is moved without being asked."""
    config = parse({"model": "weather"}, PublishConfig)

    assert (config.alias, config.registry) == (None, "s3://recurra/registry")


@pytest.mark.parametrize(
    ("key", "value", "text"),
    [
        ("model", "a b", "publish.model: 'a b' is no name of a model"),
        ("alias", "beef", "publish.alias: 'beef' is no alias"),
        ("registry", "models", "publish.registry: 'models' is no address of a store. Write s3://bucket/prefix"),
    ],
)
def test_a_fault_is_found_before_the_run_and_not_at_its_end(key, value, text):
    """Six hours of training must not end in a name that cannot be published."""
    with pytest.raises(ConfigError, match=text):
        parse({"model": "weather", key: value}, PublishConfig)
