import pytest
import torch
from torch.testing import assert_close

from recurra.models.config import NtmConfig
from recurra.models.controllers import CONTROLLERS

CELLS = {"lstm": torch.nn.LSTMCell, "gru": torch.nn.GRUCell}


@pytest.mark.parametrize("kind", CELLS)
def test_a_controller_is_torchs_cell_on_features_and_reads(kind):
    """The three products are laid out for speed; the cell is the ordinary one."""
    torch.manual_seed(0)
    controller = CONTROLLERS[kind](3, 4, 5, 1.0)
    cell = CELLS[kind](7, 5)
    with torch.no_grad():
        cell.weight_ih.copy_(torch.cat([controller.weight_x, controller.weight_rh[:, :4]], 1))
        cell.weight_hh.copy_(controller.weight_rh[:, 4:])
        cell.bias_ih.copy_(controller.bias.normal_())
        cell.bias_hh.zero_()
    x, reads = torch.randn(2, 3), torch.randn(2, 4)
    state = {name: torch.randn(2, 5) for name in controller.names}

    h_BH, after = controller.advance(controller.project(x), reads, state)

    known = tuple(state.values()) if kind == "lstm" else state["h"]
    expected = cell(torch.cat([x, reads], 1), known)
    assert_close(tuple(after.values()) if kind == "lstm" else after["h"], expected)
    assert_close(h_BH, after["h"])


def test_the_feed_forward_controller_keeps_nothing():
    """Its only past is the memory, which is what makes its addressing easy to read (paper, section 3.4)."""
    controller = CONTROLLERS["feed_forward"](3, 4, 5, 1.0)

    h_BH, after = controller.advance(controller.project(torch.ones(1, 3)), torch.ones(1, 4), {})

    assert after == {}
    joined = torch.cat([controller.weight_x, controller.weight_rh], 1)
    assert_close(h_BH, (joined @ torch.ones(7) + controller.bias).tanh()[None])


def test_weights_start_large():
    """With small weights the copy task is not learned in 46,000 sequences; with these in 10,000 to 26,000."""
    torch.manual_seed(0)
    controller = CONTROLLERS["lstm"](9, 20, 100, NtmConfig().controller_start)

    assert 0.4 < controller.weight_rh.abs().max() < 5 / 129**0.5


def test_a_small_start_makes_the_state_a_code_of_the_last_steps():
    """Streams whose last six bits are alike end in nearly one state, which the large default does not give."""
    left = {}
    for start in (2.0, 5.0):
        torch.manual_seed(0)
        controller = CONTROLLERS["lstm"](1, 20, 100, start)
        bits_BT = torch.randint(0, 2, (16, 80)).float()
        alike_BT = torch.cat([bits_BT[:, :-6], bits_BT[:1, -6:].repeat(16, 1)], 1)
        left[start] = spread_after(controller, alike_BT) / spread_after(controller, bits_BT)

    assert left[2.0] < 0.1
    assert left[5.0] > 0.5


def spread_after(controller, x_BT):
    """Mean standard deviation of the outputs over the batch."""
    state = {name: torch.zeros(len(x_BT), controller.hidden_size) for name in controller.names}
    with torch.no_grad():
        for x_B in x_BT.t():
            h_BH, state = controller.advance(controller.project(x_B[:, None]), torch.zeros(len(x_BT), 20), state)
    return float(h_BH.std(0).mean())
