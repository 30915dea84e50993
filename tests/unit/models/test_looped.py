import pytest
import torch
from torch.testing import assert_close

from recurra.models.backend import use_backend
from recurra.models.cells import GruCell, LstmCell
from recurra.models.config import ModelConfig, RegularisationConfig
from recurra.models.looped import LoopedGruCell, LoopedLstmCell, draw_kept
from recurra.models.window import Window


def run(cell, x_BTD, state=None):
    state = cell.start_state(x_BTD.shape[0], "cpu") if state is None else state
    return cell(x_BTD, state, Window(x_BTD.shape[1], None, None))


@pytest.mark.parametrize("backend", ["auto", "eager"])
def test_without_options_the_loops_give_what_the_kernels_give(backend):
    """An option that is switched off must change nothing."""
    for looped, kernel in ((LoopedLstmCell, LstmCell), (LoopedGruCell, GruCell)):
        torch.manual_seed(0)
        config = ModelConfig(hidden_size=4)
        cell, plain = looped(3, config).double(), kernel(3, config).double()
        plain.load_state_dict(cell.state_dict())
        x_BTD = torch.randn(2, 5, 3).double()

        with torch.no_grad():  # where LSTM layers run on torch's kernel
            expected = run(plain, x_BTD)
        with use_backend(backend):
            assert_close(run(cell, x_BTD), expected, atol=1e-12, rtol=1e-12)


def test_layer_normalisation_and_peepholes_are_the_papers():
    """Ba et al. 2016, equations 20 to 22, and Gers et al. 2002, written out for one step."""
    torch.manual_seed(0)
    cell = LoopedLstmCell(3, ModelConfig(hidden_size=4, layer_norm=True, peephole=True))
    with torch.no_grad():
        for parameter in cell.parameters():
            parameter.normal_()
    x, h, c = torch.randn(3), torch.randn(4), torch.randn(4)

    after = cell.step(x[None], {"h": h[None], "c": c[None]})

    def norm(values, layer):
        return (values - values.mean()) / (values.var(correction=0) + 1e-5).sqrt() * layer.weight + layer.bias

    total = norm(cell.weight_ih @ x, cell.norm_x) + norm(cell.weight_hh @ h, cell.norm_h) + cell.bias_ih + cell.bias_hh
    entry, forget, candidate, out = total.view(4, 4)
    p_entry, p_forget, p_out = cell.peepholes
    new_c = torch.sigmoid(forget + p_forget * c) * c + torch.sigmoid(entry + p_entry * c) * candidate.tanh()
    new_h = torch.sigmoid(out + p_out * new_c) * norm(new_c, cell.norm_c).tanh()
    assert_close(after, {"h": new_h[None], "c": new_c[None]})


def test_zoneout_keeps_old_values_by_chance_in_training_and_mixes_them_otherwise():
    """Krueger et al. 2017, equation 4 and section 3.3: the expectation is used at test time."""
    torch.manual_seed(0)
    config = ModelConfig(hidden_size=300, regularisation=RegularisationConfig(zoneout=0.25))
    cell = LoopedGruCell(1, config)
    x_B1D, state = torch.ones(1, 1, 1), {"h": torch.full((1, 300), 5.0)}

    trained_B1H, _ = run(cell, x_B1D, state)
    mixed_B1H, _ = run(cell.eval(), x_B1D, state)

    kept = trained_B1H == 5.0
    assert 0.2 < kept.float().mean() < 0.3
    new_B1H = (mixed_B1H - 0.25 * 5.0) / 0.75
    assert_close(trained_B1H[~kept], new_B1H[~kept], atol=1e-4, rtol=0)


@pytest.mark.parametrize("prob", [0.0, 0.01, 0.25, 0.99])
def test_a_mask_has_its_chance_at_every_place_and_none_depends_on_its_neighbour(prob):
    """Four units share one draw of 64 bits: all of its bits must count alike."""
    torch.manual_seed(0)
    kept = draw_kept((50_000, 4), prob, torch.device("cpu")).float()

    assert_close(kept.mean(0), torch.full((4,), prob), atol=0.01, rtol=0)
    assert_close(
        kept.t() @ kept / 50_000, torch.full((4, 4), prob**2) + torch.eye(4) * (prob - prob**2), atol=0.01, rtol=0
    )


def test_an_odd_number_of_units_gets_a_mask_too():
    """Draws come in fours, units do not."""
    assert draw_kept((3, 5), 0.5, torch.device("cpu")).shape == (3, 5)


def test_projection_is_torchs():
    """The same numbers as nn.LSTM(proj_size=...), in one step and over sequences."""
    torch.manual_seed(0)
    cell = LoopedLstmCell(3, ModelConfig(hidden_size=5, projection_size=2)).double()
    theirs = torch.nn.LSTM(3, 5, proj_size=2, batch_first=True).double()
    theirs.load_state_dict({f"{name}_l0": value for name, value in cell.state_dict().items()})
    x_BTD = torch.randn(2, 6, 3).double()

    y_BTH, state = run(cell, x_BTD)

    expected_BTH, (h_1BH, c_1BH) = theirs(x_BTD)
    assert_close((y_BTH, state["h"], state["c"]), (expected_BTH, h_1BH[0], c_1BH[0]))
    assert_close(cell.step(x_BTD[:, 0], cell.start_state(2, "cpu"))["h"], expected_BTH[:, 0])
