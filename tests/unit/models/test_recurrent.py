import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from torch.testing import assert_close

from recurra.models.backend import use_backend
from recurra.models.config import ModelConfig, RegularisationConfig
from recurra.models.recurrent import RecurrentStack

TORCH = {"rnn": nn.RNN, "gru": nn.GRU, "lstm": nn.LSTM}


@pytest.fixture(autouse=True, scope="module", params=["auto", "eager"])
def each_backend(request):
    """What is said here holds with the native kernels and without them."""
    with use_backend(request.param):
        yield


TIGHT = {"atol": 1e-12, "rtol": 1e-12}


def pair(cell, *, bidirectional=False, layers=2):
    """A stack and a torch.nn module with the same weights, in float64."""
    torch.manual_seed(3)
    ours = RecurrentStack(ModelConfig(cell=cell, hidden_size=5, layers=layers, bidirectional=bidirectional), 4).double()
    theirs = TORCH[cell](4, 5, layers, bidirectional=bidirectional, batch_first=True).double()
    with torch.no_grad():
        for layer, prefixes in enumerate(ours.prefixes):
            for prefix, ending in zip(prefixes, ("", "_reverse"), strict=False):
                for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
                    getattr(theirs, f"{name}_l{layer}{ending}").copy_(getattr(ours.cell(prefix), name))
    return ours, theirs


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("cell", TORCH)
def test_torch_gives_the_same_numbers_from_the_same_weights(cell, bidirectional):
    """Weights trained elsewhere can be brought here, and ours can be checked by others."""
    ours, theirs = pair(cell, bidirectional=bidirectional)
    x_BTD, lengths_B = torch.randn(3, 6, 4, dtype=torch.float64), torch.tensor([6, 2, 4])
    packed = pack_padded_sequence(x_BTD, lengths_B, batch_first=True, enforce_sorted=False)

    expected_BTH = pad_packed_sequence(theirs(packed)[0], batch_first=True)[0]

    assert_close(ours(x_BTD, None, lengths_B)[0], expected_BTH, **TIGHT)


@pytest.mark.parametrize("cell", TORCH)
def test_torch_ends_in_the_same_state(cell):
    """The state after each row's last real step, cell states included."""
    ours, theirs = pair(cell)
    x_BTD, lengths_B = torch.randn(3, 6, 4, dtype=torch.float64), torch.tensor([6, 2, 4])
    packed = pack_padded_sequence(x_BTD, lengths_B, batch_first=True, enforce_sorted=False)

    expected = theirs(packed)[1]
    _, state = ours(x_BTD, None, lengths_B)

    for name, values_LBH in zip("hc", expected if cell == "lstm" else (expected,), strict=False):
        for layer, value_BH in enumerate(values_LBH):
            assert_close(state[f"{layer}.{name}"], value_BH, **TIGHT)


def test_stacking_adds_each_layers_input_from_the_second_on_when_residual():
    """`model.residual` must not touch the first layer, whose input has another size."""
    torch.manual_seed(0)
    config = ModelConfig(cell="gru", hidden_size=3, layers=2, residual=True)
    stack = RecurrentStack(config, 2)
    x_BTD = torch.randn(1, 4, 2)

    y_BTH, _ = stack(x_BTD)

    whole = stack.state_dict()
    parts = [RecurrentStack(ModelConfig(cell="gru", hidden_size=3), size) for size in (2, 3)]
    for number, part in enumerate(parts):
        prefix = f"cells.{number}."
        own = {name.replace(prefix, "cells.0."): value for name, value in whole.items() if name.startswith(prefix)}
        part.load_state_dict(own)
    first_BTH, _ = parts[0](x_BTD)
    assert_close(y_BTH, first_BTH + parts[1](first_BTH)[0])


def test_the_forget_gate_starts_open_and_recurrent_weights_start_orthogonal():
    """Both decide whether long gaps are learned at all: 0.17 against 1e-3 on the adding task without them."""
    torch.manual_seed(0)
    cell = RecurrentStack(ModelConfig(cell="lstm", hidden_size=4), 2).cell("0")

    assert (cell.bias_ih + cell.bias_hh)[4:8].tolist() == [1, 1, 1, 1]
    for block in cell.weight_hh.chunk(4):
        assert_close(block @ block.T, torch.eye(4), atol=1e-6, rtol=0)


def test_both_starts_can_be_chosen():
    """Published recipes name other ones, and are tried as they were."""
    torch.manual_seed(0)
    settings = ModelConfig(cell="lstm", hidden_size=40, forget_bias=2.5, recurrent_start="xavier")
    for config in (settings, settings.model_copy(update={"peephole": True})):
        cell = RecurrentStack(config, 2).cell("0")
        bound = (6 / 80) ** 0.5
        assert (cell.bias_ih + cell.bias_hh)[40:80].tolist() == [2.5] * 40
        assert cell.weight_hh.abs().max() <= bound < 1.05 * cell.weight_hh.abs().max()
        assert (cell.weight_hh[:40] @ cell.weight_hh[:40].T - torch.eye(40)).abs().max() > 0.1


def test_weight_drop_draws_one_mask_for_the_whole_window():
    """Merity et al. 2017: a recurrent connection is missing at every step or at none, even across a reset."""
    torch.manual_seed(0)
    config = ModelConfig(
        cell="rnn", hidden_size=8, learned_initial_state=True, regularisation=RegularisationConfig(weight_drop=0.5)
    )
    stack = RecurrentStack(config, 1)
    torch.nn.init.normal_(stack.cell("0").start["h"])
    x_BTD = torch.zeros(2, 6, 1)
    reset_BT = torch.tensor([[False, False, False, True, False, False], [False] * 6])

    dropped_BTH, _ = stack(x_BTD, None, None, reset_BT)
    full_BTH, _ = stack.eval()(x_BTD)

    assert_close(dropped_BTH[0, 3:], dropped_BTH[1, :3])
    assert not torch.allclose(dropped_BTH[1], full_BTH[1])


def test_weights_are_never_dropped_in_a_step():
    """Serving steps; chance has no place there."""
    torch.manual_seed(0)
    config = ModelConfig(cell="lstm", hidden_size=8, regularisation=RegularisationConfig(weight_drop=0.5, zoneout=0.5))
    stack = RecurrentStack(config, 1)
    state = {name: value + 1 for name, value in stack.zero_state(1).items()}

    assert_close(stack.train().step(torch.ones(1, 1), state), stack.eval().step(torch.ones(1, 1), state))


def test_chrono_starts_open_the_forget_gate_and_close_the_input_gate_as_much():
    """Tallec and Ollivier 2018, equation 16."""
    torch.manual_seed(0)
    cell = RecurrentStack(ModelConfig(cell="lstm", hidden_size=200, chrono_steps=50), 1).cell("0")

    entry, forget = cell.bias_ih[:200], cell.bias_ih[200:400]
    assert_close(entry, -forget)
    assert forget.exp().min() >= 1 and 40 < forget.exp().max() <= 49


def test_dropout_acts_between_layers_and_on_the_output_in_training_only():
    """`regularisation.dropout` as the job file documents it."""
    torch.manual_seed(0)
    config = ModelConfig(cell="gru", hidden_size=64, layers=2, regularisation=RegularisationConfig(dropout=0.5))
    stack = RecurrentStack(config, 3)
    x_BTD = torch.randn(2, 10, 3)

    y_BTH, state = stack(x_BTD)
    quiet_BTH, quiet = stack.eval()(x_BTD)

    assert 0.4 < (y_BTH == 0).float().mean() < 0.6
    assert not (quiet_BTH == 0).any()
    assert_close(state["0.h"], quiet["0.h"])
    assert not torch.allclose(state["1.h"], quiet["1.h"])


def test_learned_starts_get_gradients_from_every_sequence_of_the_window():
    """A start that only the first sequence of a lane could teach would hardly be learned."""
    torch.manual_seed(0)
    stack = RecurrentStack(ModelConfig(cell="lstm", hidden_size=3, learned_initial_state=True), 2)
    reset_BT = torch.tensor([[False, False, True, False]])

    y_BTH, _ = stack(torch.randn(1, 4, 2), {n: v.detach() for n, v in stack.zero_state(1).items()}, None, reset_BT)
    y_BTH[:, 2:].sum().backward()

    assert all(value.grad is not None and value.grad.any() for value in stack.cell("0").start.values())


@pytest.mark.parametrize("cell", ["rnn", "gru", "lstm", "minlstm", "mingru"])
def test_ten_thousand_steps_in_bfloat16_stay_finite_and_close(cell):
    """A state that is carried for days must not drift away, whatever precision the products have."""
    torch.manual_seed(0)
    stack = RecurrentStack(ModelConfig(cell=cell, hidden_size=8), 3).eval()
    x_BTD = torch.randn(1, 10_000, 3)

    with torch.inference_mode():
        exact_BTH, _ = stack(x_BTD)
        state = None
        with torch.autocast("cpu", dtype=torch.bfloat16):
            for window_BTD in x_BTD.split(1000, 1):
                y_BTH, state = stack(window_BTD, state)

    assert y_BTH.isfinite().all()
    assert_close(y_BTH.float(), exact_BTH[:, -1000:], atol=0.2, rtol=0)
