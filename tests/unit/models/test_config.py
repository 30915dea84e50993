import pytest

from recurra.config.load import dump, parse
from recurra.errors import ConfigError
from recurra.models.config import ModelConfig


def test_tied_embeddings_need_the_width_of_the_output():
    """One matrix can have only one width; the message gives it."""
    with pytest.raises(ConfigError, match=r"tied_embeddings is true.*Set model\.embedding_size to 512"):
        parse({"hidden_size": 256, "bidirectional": True, "tied_embeddings": True}, ModelConfig)


@pytest.mark.parametrize("change", [{"layers": 2}, {"bidirectional": True}])
def test_an_ntm_has_one_layer_in_one_direction(change):
    """Refused before a cluster is asked for."""
    with pytest.raises(ConfigError, match=r"model\.cell is ntm with .*Set layers to 1 and bidirectional to false"):
        parse({"cell": "ntm", **change}, ModelConfig)


def test_a_section_survives_its_dump():
    """Bundles carry the dump, and serving builds the model from it."""
    config = parse({"cell": "ntm", "ntm": {"read_heads": 2}, "regularisation": {"dropout": 0.1}}, ModelConfig)

    assert parse(dump(config), ModelConfig) == config
