import torch
from torch.testing import assert_close

from recurra.models.build import build_core
from recurra.models.config import ModelConfig


def test_each_output_attends_to_the_last_outputs_of_its_own_sequence():
    """Written out: no step sees further back than the window, nor into another sequence, nor ahead."""
    torch.manual_seed(0)
    config = ModelConfig(cell="gru", hidden_size=4, attention="multiplicative", attention_window=3)
    core = build_core(config, 2).double()
    x_BTD = torch.randn(1, 8, 2).double()
    reset_BT = torch.arange(8)[None] == 5

    y_BTH, state = core(x_BTD, None, None, reset_BT)

    plain_TH = core.inner(x_BTD, None, None, reset_BT)[0][0]
    for t, begin in enumerate([0, 0, 0, 1, 2, 5, 5, 5]):
        seen_TH = plain_TH[begin : t + 1]
        weights_T = (seen_TH @ core.attention.query.weight @ plain_TH[t]).softmax(0)
        expected = core.mix(torch.cat([weights_T @ seen_TH, plain_TH[t]])).tanh()
        assert_close(y_BTH[0, t], expected)
    assert state["filled"].tolist() == [2]


def test_the_state_does_not_grow():
    """A session may live for days; its state must not."""
    config = ModelConfig(cell="gru", hidden_size=4, attention="multi_head", attention_window=16)
    core = build_core(config, 2).eval()
    state = core.zero_state(1)

    for _ in range(50):
        _, state = core.step(torch.ones(1, 2), state)

    assert sum(value.numel() * value.element_size() for value in state.values()) == core.state_spec.size_bytes
    assert core.state_spec.size_bytes == 4 * 4 + 2 * 15 * 4 * 4 + 8
