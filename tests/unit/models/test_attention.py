import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from recurra.models.attention import ATTENTIONS, MultiHeadAttention, masked_softmax


@pytest.mark.parametrize("kind", ATTENTIONS)
@settings(max_examples=20, deadline=None)
@given(size=st.integers(1, 12), steps=st.integers(1, 6), seed=st.integers(0, 999))
def test_padding_gets_no_weight_and_changes_nothing(kind, size, steps, seed):
    """A context must not depend on how far the batch was padded."""
    torch.manual_seed(seed)
    attention = ATTENTIONS[kind](size, size).double()
    query, memory = torch.randn(2, size).double(), torch.randn(2, steps + 2, size).double()
    mask = torch.arange(steps + 2).expand(2, -1) < steps

    context_BH, weights_BT = attention(query, memory, mask)
    alone_BH, alone_BT = attention(query, memory[:, :steps], mask[:, :steps])

    assert_close(context_BH, alone_BH)
    assert_close(weights_BT[:, :steps], alone_BT)
    assert not weights_BT[:, steps:].any()
    assert_close(weights_BT.sum(1), torch.ones(2).double())


def test_additive_scores_are_bahdanaus():
    """v . tanh(W q + U m), written out."""
    torch.manual_seed(0)
    attention = ATTENTIONS["additive"](3, 3)
    query, memory = torch.randn(1, 3), torch.randn(1, 4, 3)

    _, weights_BT = attention(query, memory, torch.ones(1, 4, dtype=torch.bool))

    mixed = (memory[0] @ attention.key.weight.T + attention.key.bias + attention.query.weight @ query[0]).tanh()
    assert_close(weights_BT[0], (mixed @ attention.score.weight[0]).softmax(0))


def test_multiplicative_scores_are_luongs():
    """m . W q, written out."""
    torch.manual_seed(0)
    attention = ATTENTIONS["multiplicative"](3, 3)
    query, memory = torch.randn(1, 3), torch.randn(1, 4, 3)

    context_BH, weights_BT = attention(query, memory, torch.ones(1, 4, dtype=torch.bool))

    assert_close(weights_BT[0], (memory[0] @ attention.query.weight @ query[0]).softmax(0))
    assert_close(context_BH[0], weights_BT[0] @ memory[0])


def test_multi_head_attention_is_torchs():
    """The same numbers as nn.MultiheadAttention from the same weights."""
    torch.manual_seed(0)
    ours = MultiHeadAttention(8, 8)
    theirs = torch.nn.MultiheadAttention(8, ours.heads, batch_first=True)
    with torch.no_grad():
        projections = (ours.query, ours.key, ours.value)
        theirs.in_proj_weight.copy_(torch.cat([p.weight for p in projections]))
        theirs.in_proj_bias.copy_(torch.cat([p.bias for p in projections]))
        theirs.out_proj.load_state_dict(ours.output.state_dict())
    query, memory = torch.randn(2, 8), torch.randn(2, 5, 8)
    mask = torch.tensor([[True] * 5, [True, True, False, False, False]])

    context_BH, weights_BT = ours(query, memory, mask)

    expected_B1H, expected_B1T = theirs(query[:, None], memory, memory, key_padding_mask=~mask)
    assert ours.heads == 4
    assert_close(context_BH, expected_B1H[:, 0])
    assert_close(weights_BT, expected_B1T[:, 0])


def test_a_row_without_steps_attends_to_nothing():
    """A filler row must not turn the whole gradient into NaN."""
    scores = torch.zeros(1, 3, requires_grad=True)

    weights = masked_softmax(scores, torch.zeros(1, 3, dtype=torch.bool))
    weights.sum().backward()

    assert not weights.any() and not scores.grad.any()
