import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from recurra.errors import ConfigError
from recurra.models.config import ModelConfig
from recurra.models.decoder import AttentionDecoder


@settings(max_examples=25, deadline=None)
@given(
    cell=st.sampled_from(["rnn", "gru", "lstm"]),
    attention=st.sampled_from(["additive", "multiplicative", "multi_head"]),
    lengths=st.lists(st.tuples(st.integers(1, 5), st.integers(1, 4)), min_size=1, max_size=3),
    seed=st.integers(0, 999),
)
def test_decoding_step_by_step_or_in_a_batch_gives_the_same(cell, attention, lengths, seed):
    """Training forces whole targets through; generation steps, one beam at a time."""
    torch.manual_seed(seed)
    config = ModelConfig(cell=cell, hidden_size=4, layers=2, attention=attention)
    decoder = AttentionDecoder(config, 3, 5).double().eval()
    source_lengths_B, target_lengths_B = torch.tensor(lengths).unbind(1)
    encoded_BTH = torch.randn(len(lengths), 5, 5).double()
    x_BTD = torch.randn(len(lengths), 4, 3).double()

    source = decoder.source(encoded_BTH, source_lengths_B)
    y_BTH, after = decoder(x_BTD, decoder.zero_state(len(lengths)), source, target_lengths_B)

    for row, (source_length, target_length) in enumerate(lengths):
        state = decoder.zero_state(1)
        alone = decoder.source(encoded_BTH[row : row + 1, :source_length])
        for t in range(target_length):
            y_BH, state = decoder.step(x_BTD[row : row + 1, t], state, alone)
            assert_close(y_BTH[row, t], y_BH[0], atol=1e-12, rtol=1e-12)
        assert not y_BTH[row, target_length:].any()
        assert_close({n: v[row] for n, v in after.items()}, {n: v[0] for n, v in state.items()}, atol=1e-12, rtol=1e-12)


def test_the_last_attentional_vector_is_fed_back():
    """Luong et al. 2015, section 3.3: the decoder knows what it has attended to."""
    torch.manual_seed(0)
    decoder = AttentionDecoder(ModelConfig(hidden_size=4, attention="additive"), 3, 5)
    source = decoder.source(torch.randn(1, 5, 5))
    state = decoder.zero_state(1)

    first, after = decoder.step(torch.ones(1, 3), state, source)
    other, _ = decoder.step(torch.ones(1, 3), {**after, "fed": torch.zeros(1, 4)}, source)

    assert_close(after["fed"], first)
    assert not torch.allclose(decoder.step(torch.ones(1, 3), after, source)[0], other)
    assert [(t.name, t.shape) for t in decoder.state_spec.tensors] == [("0.h", (4,)), ("0.c", (4,)), ("fed", (4,))]


def test_beams_pick_their_rows_of_the_source():
    """Several hypotheses share one encoded sentence."""
    torch.manual_seed(0)
    decoder = AttentionDecoder(ModelConfig(hidden_size=4, attention="multi_head"), 3, 5)
    source = decoder.source(torch.randn(2, 5, 5), torch.tensor([5, 2]))
    x_BD = torch.randn(2, 3)

    both, _ = decoder.step(x_BD, decoder.zero_state(2), source)
    turned, _ = decoder.step(x_BD.flip(0), decoder.zero_state(2), source.rows(torch.tensor([1, 0])))

    assert_close(turned.flip(0), both)


@pytest.mark.parametrize("change", [{"attention": "none"}, {"attention": "additive", "cell": "ntm"}])
def test_a_decoder_without_attention_or_layers_is_refused(change):
    """The message names both settings."""
    with pytest.raises(ConfigError, match=r"a decoder attends to the source.*Set attention to additive"):
        AttentionDecoder(ModelConfig(hidden_size=4, **change), 3, 5)
