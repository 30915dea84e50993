import pytest
import torch

from recurra.errors import ConfigError, ModelError
from recurra.models.beam import Search
from recurra.models.config import ModelConfig
from recurra.models.encoder_decoder import EncoderDecoder, Languages, unpack

SEARCH = Search(beams=3, longest=12, length_penalty=0.5, end=2)


def model_of(**settings) -> EncoderDecoder:
    torch.manual_seed(2)
    config = ModelConfig(
        **{"cell": "gru", "hidden_size": 8, "attention": "additive", "bidirectional": True, **settings}
    )
    model = EncoderDecoder(config, Languages(source=11, target=7), SEARCH).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.6)
    return model


@pytest.mark.parametrize("cell", ["rnn", "gru", "lstm"])
@pytest.mark.parametrize("attention", ["additive", "multiplicative", "multi_head"])
def test_what_it_says_scores_as_teacher_forcing_says(cell, attention):
    """Two roads to one number: the search's score, and the log probabilities of the same answer when it is given."""
    model = model_of(cell=cell, attention=attention, layers=2)
    source = torch.tensor([[4, 5, 6, 1]])
    score, tokens = unpack(model(source)[0], SEARCH)[0][0]
    logits, _ = model.teach(source, None, torch.tensor([[2, *tokens]]))
    logs = logits.detach().log_softmax(-1)[0]
    spoken = [*tokens, 2] if len(tokens) < SEARCH.longest else tokens
    total = sum(float(logs[index, token]) for index, token in enumerate(spoken))
    assert score == pytest.approx(total / ((5 + max(len(tokens), 1)) / 6) ** 0.5, abs=1e-4)


def test_a_row_of_a_batch_is_answered_as_alone():
    """Padding of the source must be seen by nobody."""
    model = model_of()
    sources = [[4, 5, 6, 1, 9], [3, 8], [7]]
    padded = torch.tensor([row + [10] * (5 - len(row)) for row in sources])
    together = unpack(model(padded, None, torch.tensor([5, 2, 1]))[0], SEARCH)
    for row, found in zip(sources, together, strict=True):
        alone = unpack(model(torch.tensor([row]))[0], SEARCH)[0]
        assert [tokens for _, tokens in found] == [tokens for _, tokens in alone]
        assert [score for score, _ in found] == pytest.approx([score for score, _ in alone], abs=1e-5)


def test_outputs_are_finite_rows_of_one_width():
    """Serving joins rows of several calls, and takes a number that is not finite for a broken model."""
    model = model_of()
    for steps in (1, 6):
        outputs, state = model(torch.ones(2, steps, dtype=torch.int64))
        assert outputs.shape == (2, model.shape.output_size)
        assert torch.isfinite(outputs).all()
        assert set(state) == {tensor.name for tensor in model.state_spec.tensors}


def test_teaching_reaches_every_weight():
    """The bridge, both embeddings, the attention."""
    model = model_of()
    logits, _ = model.teach(torch.tensor([[4, 5, 6]]), torch.tensor([3]), torch.tensor([[2, 3, 4]]))
    logits.log_softmax(-1)[0, 1, 4].backward()
    assert all(bool(parameter.grad.abs().sum() > 0) for parameter in model.parameters() if parameter.dim() > 1)


def test_it_does_not_step():
    """It has to read all of its source."""
    assert not model_of().steppable
    with pytest.raises(ModelError, match="Send whole sequences to /v1/predict"):
        model_of().step(torch.tensor([1]), {})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"attention": "none"}, "Set attention to additive"),
        ({"attention_window": 4, "bidirectional": False}, "attention_window 4, which an encoder-decoder does not have"),
    ],
)
def test_settings_that_it_lacks_are_refused(settings, message):
    """Before training starts."""
    with pytest.raises(ConfigError, match=message):
        model_of(**settings)
