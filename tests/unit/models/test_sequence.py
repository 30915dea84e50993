from __future__ import annotations

import functools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from recurra.errors import ConfigError, ModelError
from recurra.models.config import ModelConfig, NtmConfig, RegularisationConfig
from recurra.models.crf import PairwiseHead
from recurra.models.sequence import Front, ModelShape, SequenceModel

TIGHT = {"atol": 1e-11, "rtol": 1e-11}
SMALL_NTM = NtmConfig(memory_rows=4, memory_width=3)


@st.composite
def models(draw, *, attention=("none",), bidirectional=(False,)):
    """A model in float64 and eval mode, with inputs, lengths and resets for it."""
    torch.manual_seed(draw(st.integers(0, 10_000)))
    per_step = draw(st.booleans())
    both = draw(st.sampled_from(bidirectional))
    cell = draw(
        st.sampled_from(["rnn", "gru", "lstm", "minlstm"] if both else ["rnn", "gru", "lstm", "minlstm", "ntm"])
    )
    config = ModelConfig(
        cell=cell,
        hidden_size=draw(st.integers(1, 4)),
        bidirectional=both,
        attention="none" if per_step else draw(st.sampled_from(attention)),
        pooling="last" if per_step else draw(st.sampled_from(["last", "mean", "max"])),
        ntm=SMALL_NTM,
        regularisation=RegularisationConfig(dropout=0.5, embedding_dropout=0.5),
    )
    if config.attention == "none" and not both and draw(st.booleans()):
        windowed = draw(st.sampled_from(["additive", "multiplicative", "multi_head"]))
        config = config.model_copy(update={"attention": windowed, "attention_window": draw(st.integers(2, 4))})
    kind = draw(st.sampled_from(["tokens", "features"]))
    model = SequenceModel(config, ModelShape(kind, 3, 2, per_step)).double().eval()
    batch, steps = draw(st.integers(1, 3)), draw(st.integers(1, 6))
    inputs = torch.randint(0, 3, (batch, steps)) if kind == "tokens" else torch.randn(batch, steps, 3).double()
    lengths_B = torch.tensor(draw(st.lists(st.integers(1, steps), min_size=batch, max_size=batch)))
    return model, inputs, lengths_B, torch.rand(batch, steps) < draw(st.sampled_from([0.0, 0.3]))


ANY = {"attention": ("none", "additive", "multiplicative", "multi_head"), "bidirectional": (False, True)}
QUICK = settings(max_examples=50, deadline=None)


@QUICK
@given(models())
def test_stepping_gives_what_the_whole_sequence_gives(case):
    """A session's answer after n steps is the answer to the n steps sent at once."""
    model, inputs, lengths_B, _ = case
    outputs, after = model(inputs, None, lengths_B)

    for row, length in enumerate(lengths_B.tolist()):
        state = model.zero_state(1)
        for t in range(length):
            stepped_1K, state = model.step(inputs[row : row + 1, t], state)
            if model.shape.per_step:
                assert_close(stepped_1K[0], outputs[row, t], **TIGHT)
        if not model.shape.per_step:
            assert_close(stepped_1K[0], outputs[row], **TIGHT)
        assert_close({n: v[0] for n, v in state.items()}, {n: v[row] for n, v in after.items()}, **TIGHT)


@QUICK
@given(models(**ANY))
def test_a_batch_equals_its_rows_alone(case):
    """Padding and neighbours change nothing, with attention and poolings neither."""
    model, inputs, lengths_B, reset_BT = case

    outputs, _ = model(inputs, None, lengths_B, reset_BT)

    for row, length in enumerate(lengths_B.tolist()):
        alone, _ = model(inputs[row : row + 1, :length], None, None, reset_BT[row : row + 1, :length])
        assert_close(outputs[row, :length] if model.shape.per_step else outputs[row], alone[0], **TIGHT)


@QUICK
@given(models(**ANY))
def test_the_answer_for_a_row_with_resets_is_that_of_its_last_sequence(case):
    """Several sequences in a row never mix; the last one is the one that is still open."""
    model, inputs, _, reset_BT = case

    outputs, _ = model(inputs, None, None, reset_BT)

    for row in range(len(inputs)):
        begin = max([0, *reset_BT[row].nonzero().flatten().tolist()])
        alone, _ = model(inputs[row : row + 1, begin:])
        assert_close(outputs[row, begin:] if model.shape.per_step else outputs[row], alone[0], **TIGHT)


@QUICK
@given(models(), st.data())
def test_a_split_sequence_with_carried_state_equals_the_whole(case, data):
    """Windows of truncated backpropagation, and sessions that were stored in between."""
    model, inputs, _, reset_BT = case
    cut = data.draw(st.integers(0, inputs.shape[1] - 1))
    whole, after = model(inputs, None, None, reset_BT)

    first, between = model(inputs[:, :cut], None, None, reset_BT[:, :cut])
    rest, end = model(inputs[:, cut:], between, None, reset_BT[:, cut:])

    assert_close(torch.cat([first, rest], 1) if model.shape.per_step else rest, whole, **TIGHT)
    assert_close(end, after, **TIGHT)


@QUICK
@given(models(**ANY))
def test_the_spec_describes_every_state(case):
    """Engine and vault allocate from the spec, in its order."""
    model, inputs, lengths_B, _ = case

    for state in (model.zero_state(len(inputs)), model(inputs, None, lengths_B)[1]):
        described = [(t.name, t.shape, t.dtype) for t in model.state_spec.tensors]
        assert described == [(n, tuple(v.shape[1:]), str(v.dtype).removeprefix("torch.")) for n, v in state.items()]


@pytest.mark.parametrize("pooling", ["last", "mean", "max"])
def test_a_row_without_steps_stays_finite(pooling):
    """Filler rows of a batch have length 0 and weight 0; 0 times NaN would be NaN."""
    model = SequenceModel(ModelConfig(hidden_size=3, pooling=pooling), ModelShape("tokens", 4, 2, per_step=False))

    outputs, _ = model(torch.zeros(2, 3, dtype=torch.int64), None, torch.tensor([0, 3]))
    outputs.sum().backward()

    assert outputs.isfinite().all()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_attention_over_whole_sequences_cannot_step_and_says_what_to_use():
    """The message is what the client of a session sees."""
    model = SequenceModel(ModelConfig(hidden_size=3, attention="additive"), ModelShape("tokens", 4, 2, per_step=False))

    assert not model.steppable
    with pytest.raises(
        ModelError, match=r"model\.attention: additive\) cannot step.*/v1/predict.*model\.attention: none"
    ):
        model.step(torch.zeros(1, dtype=torch.int64), model.zero_state(1))


@pytest.mark.parametrize("change", [{"attention": "additive"}, {"pooling": "mean"}])
def test_poolings_are_refused_where_every_step_has_an_output(change):
    """A setting that would be ignored is a mistake of the user's, and is told."""
    with pytest.raises(ConfigError, match=r"output at every step\. Set pooling to last, and attention to none"):
        SequenceModel(ModelConfig(hidden_size=3, **change), ModelShape("tokens", 4, 4, per_step=True))


@pytest.mark.parametrize("shape", [ModelShape("features", 4, 4, True), ModelShape("tokens", 4, 2, True)])
def test_tying_is_refused_where_input_and_output_are_not_one_vocabulary(shape):
    """There is no matrix to share."""
    with pytest.raises(ConfigError, match=r"tied_embeddings is true.*Tie only where both are the same vocabulary"):
        SequenceModel(ModelConfig(hidden_size=3, tied_embeddings=True), shape)


def test_a_seed_decides_the_weights():
    """Two workers that build the same model must start from the same weights."""
    states = []
    for _ in range(2):
        torch.manual_seed(7)
        model = SequenceModel(ModelConfig(cell="ntm", hidden_size=4, ntm=SMALL_NTM), ModelShape("tokens", 5, 5, True))
        states.append(model.state_dict())

    assert_close(states[0], states[1], atol=0, rtol=0)


@pytest.mark.parametrize("per_step", [True, False])
def test_a_trace_shows_the_weightings_beside_the_outputs(per_step):
    """Reports draw them, and the memory endpoint returns them."""
    torch.manual_seed(0)
    model = SequenceModel(ModelConfig(cell="ntm", hidden_size=4, ntm=SMALL_NTM), ModelShape("tokens", 5, 2, per_step))
    tokens = torch.randint(0, 5, (2, 6))

    trace = model.trace(tokens)

    assert trace.weightings["read_weights"].shape == (2, 6, 1, 4)
    outputs, state = model(tokens)
    assert_close((trace.outputs, trace.state), (outputs, state))


class Doubled(Front):
    """A front for the tests: features beside themselves."""

    output_size = 4

    def forward(self, inputs):
        return torch.cat([inputs, inputs], -1)


def test_a_front_and_a_head_of_the_tasks_own_step_as_they_read():
    """What a task brings along must keep the law: forward equals step repeated."""
    torch.manual_seed(0)
    shape = ModelShape("features", 2, 12, per_step=True)
    head = functools.partial(PairwiseHead, tags=3)
    model = SequenceModel(ModelConfig(cell="gru", hidden_size=6), shape, front=Doubled(), head=head).eval()
    inputs = torch.randn(2, 5, 2)
    whole, _ = model(inputs)
    state, steps = model.zero_state(2), []
    for t in range(5):
        output, state = model.step(inputs[:, t], state)
        steps.append(output)
    assert whole.shape == (2, 5, 12)
    torch.testing.assert_close(torch.stack(steps, 1), whole)
