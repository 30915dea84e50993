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


@pytest.mark.parametrize(
    ("cell", "change"),
    [
        ("gru", {"peephole": True}),
        ("rnn", {"projection_size": 3}),
        ("mingru", {"layer_norm": True}),
        ("ntm", {"regularisation": {"zoneout": 0.1}}),
        ("minlstm", {"regularisation": {"weight_drop": 0.1}}),
        ("rnn", {"chrono_steps": 50}),
        ("gru", {"forget_bias": 2.0}),
        ("ntm", {"recurrent_start": "xavier"}),
    ],
)
def test_an_option_that_the_cell_does_not_have_is_refused(cell, change):
    """A setting without effect would be believed to have one."""
    with pytest.raises(ConfigError, match=rf"which a {cell} does not have\. Remove it, or set model\.cell to"):
        parse({"cell": cell, **change}, ModelConfig)


def test_a_projection_must_be_smaller_than_the_layer():
    """It is there to make the recurrent matrix smaller."""
    with pytest.raises(ConfigError, match="projection_size is 8 and hidden_size 8. Set projection_size below"):
        parse({"hidden_size": 8, "projection_size": 8}, ModelConfig)


def test_an_ntm_cannot_tie_its_embedding():
    """Its output is wider than its hidden units by the reads."""
    with pytest.raises(ConfigError, match="reads beside the hidden units. Set tied_embeddings to false"):
        parse({"cell": "ntm", "tied_embeddings": True}, ModelConfig)


@pytest.mark.parametrize("change", [{}, {"attention": "additive", "bidirectional": True}])
def test_an_attention_window_needs_attention_and_one_direction(change):
    """Without attention it would do nothing, and a bidirectional model cannot step anyway."""
    with pytest.raises(ConfigError, match=r"attention_window is 8 with attention .*Set attention to multi_head"):
        parse({"attention_window": 8, **change}, ModelConfig)
