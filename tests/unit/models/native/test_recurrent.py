"""The native window of a layer against torch's operations, which other tests hold to torch.nn and to the papers."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from recurra.models.backend import use_backend
from recurra.models.config import ModelConfig, RegularisationConfig
from recurra.models.looped import LoopedCell, LoopedElmanCell
from recurra.models.native.library import kernels
from recurra.models.recurrent import build_cell
from recurra.models.window import Window

pytestmark = [
    pytest.mark.skipif(kernels() is None, reason="no C++ compiler on this machine"),
    pytest.mark.usefixtures("instruction_set"),
]
KINDS = [("rnn", "tanh"), ("rnn", "relu"), ("gru", "tanh"), ("lstm", "tanh")]


def cell_of(cell, nonlinearity="tanh", size=5, inputs=3, **options):
    """A cell with random weights in float64."""
    regularisation = RegularisationConfig(**{k: options.pop(k) for k in ("zoneout", "weight_drop") if k in options})
    config = ModelConfig(
        cell=cell, nonlinearity=nonlinearity, hidden_size=size, regularisation=regularisation, **options
    )
    made = build_cell(config, inputs).double()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_(std=0.5)
    return made


@st.composite
def cases(draw):
    """A cell with any options, inputs, a state and lengths; sizes that no vector length divides."""
    cell, nonlinearity = draw(st.sampled_from(KINDS))
    torch.manual_seed(draw(st.integers(0, 10_000)))
    made = cell_of(
        cell,
        nonlinearity,
        draw(st.sampled_from([1, 5, 16, 35])),
        layer_norm=draw(st.booleans()),
        peephole=cell == "lstm" and draw(st.booleans()),
        zoneout=draw(st.sampled_from([0.0, 0.3])),
        weight_drop=draw(st.sampled_from([0.0, 0.2])),
    ).train(draw(st.booleans()))
    batch, steps = draw(st.sampled_from([1, 2, 3, 4, 7, 9, 17])), draw(st.integers(2, 6))
    lengths_B = torch.randint(0, steps + 1, (batch,)) if draw(st.booleans()) else None
    state = {name: torch.randn(batch, size, dtype=torch.float64) for name, size in made.sizes.items()}
    return made, torch.randn(batch, steps, 3, dtype=torch.float64), state, lengths_B


def everything(cell, x_BTD, state, lengths_B=None):
    """Outputs, state and all gradients of one fixed linear function of them; the same masks at each call."""
    torch.manual_seed(1)
    inputs = {name: value.detach().requires_grad_() for name, value in {"x": x_BTD, **state}.items()}
    x_BTD = inputs.pop("x")
    y_BTH, after = cell(x_BTD, inputs, Window(x_BTD.shape[1], lengths_B, None))
    if lengths_B is not None:
        y_BTH = y_BTH.masked_fill((torch.arange(x_BTD.shape[1]) >= lengths_B[:, None])[:, :, None], 0)
    generator = torch.Generator().manual_seed(0)
    values = [y_BTH, *after.values()]
    loss = sum((v * torch.randn(v.shape, generator=generator, dtype=torch.float64).to(v.dtype)).sum() for v in values)
    gradients = torch.autograd.grad(loss, [x_BTD, *inputs.values(), *cell.parameters()])
    return [v.detach() for v in values], list(gradients)


@settings(max_examples=60, deadline=None)
@given(cases())
def test_values_and_gradients_equal_those_of_torchs_operations(case):
    """Any cell, options, sizes and lengths: the kernel is the same function, masks of zoneout included."""
    with use_backend("eager"):
        expected = everything(*case)

    assert_close(everything(*case), expected, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("batch", [1, 32])
@pytest.mark.parametrize("cell", ["rnn", "gru", "lstm", "options"])
def test_float32_is_within_1e5_of_float64_and_its_gradients_within_1e4(cell, batch):
    """The type that everything is trained in, over as many steps as a window has."""
    torch.manual_seed(0)
    options = {"layer_norm": True, "peephole": True, "zoneout": 0.2} if cell == "options" else {}
    made = cell_of("lstm" if options else cell, size=64, inputs=9, **options)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.mul_(0.3)
    x_BTD = torch.randn(batch, 40, 9)
    state = {name: torch.zeros(batch, size) for name, size in made.sizes.items()}

    values, gradients = everything(made.float(), x_BTD, state)

    with use_backend("eager"):
        state = {name: value.double() for name, value in state.items()}
        exact_values, exact_gradients = everything(made.double(), x_BTD.double(), state)
    for value, exact in zip(values, exact_values, strict=True):
        assert_close(value.double(), exact, atol=1e-5, rtol=1e-5)
    for value, exact in zip(gradients, exact_gradients, strict=True):
        assert_close(value.double(), exact, atol=1e-4 * float(exact.abs().max()) + 1e-7, rtol=0)


@pytest.mark.parametrize("scale", [1e-6, 1e2, 1e4])
@pytest.mark.parametrize(("cell", "nonlinearity"), [kind for kind in KINDS if kind[1] != "relu"])
def test_everything_stays_finite_at_extremes(cell, nonlinearity, scale):
    """Gates are shut or open to the last bit there; a kernel built with -ffast-math would divide infinities."""
    torch.manual_seed(0)
    for options in ({}, {"layer_norm": True, "zoneout": 0.3}):
        made = cell_of(cell, nonlinearity, 10, **options).float()
        with torch.no_grad():
            for parameter in made.parameters():
                parameter.normal_(std=scale)
        state = {name: torch.randn(4, size) for name, size in made.sizes.items()}
        values, gradients = everything(made, torch.randn(4, 4, 3) * scale, state)

        assert all(value.isfinite().all() for value in [*values, *gradients])


def test_what_is_not_finite_stays_so():
    """The guard of the loop skips such an update; a kernel that hid it would train on garbage."""
    for cell, nonlinearity in KINDS:
        made = cell_of(cell, nonlinearity)
        x_BTD = torch.full((1, 3, 3), float("nan"), dtype=torch.float64)
        y_BTH, _ = made(x_BTD, made.start_state(1, "cpu"), Window(3, None, None))

        assert y_BTH.isnan().all()


@pytest.mark.parametrize("cell", ["rnn", "gru", "lstm"])
def test_gradients_pass_the_finite_difference_check(cell):
    """The backward pass is written by hand, so it is checked against the forward pass itself."""
    torch.manual_seed(0)
    made = cell_of(cell, size=4, layer_norm=True, zoneout=0.3, peephole=cell == "lstm").train()
    names, parameters = zip(*made.named_parameters(), strict=True)
    state = {name: torch.randn(5, size, dtype=torch.float64) for name, size in made.sizes.items()}

    def run(x_BTD, *values):
        torch.manual_seed(2)  # the same masks for every evaluation
        given = dict(zip([*names, *state], values, strict=True))
        start = {name: given.pop(name) for name in state}
        window = Window(4, torch.tensor([4, 2, 0, 4, 3]), None)
        y_BTH, after = torch.func.functional_call(made, given, (x_BTD, start, window))
        return y_BTH, *after.values()

    inputs = (torch.randn(5, 4, 3, dtype=torch.float64), *parameters, *state.values())
    assert torch.autograd.gradcheck(run, tuple(t.detach().requires_grad_() for t in inputs), fast_mode=True, atol=1e-6)


def test_a_graph_can_be_walked_twice_and_workspaces_are_used_again():
    """A tape that went back to the pool too early would give the second walk somebody else's numbers."""
    torch.manual_seed(0)
    cell = cell_of("gru")
    x_BTD, state = torch.randn(2, 5, 3, dtype=torch.float64), cell.start_state(2, "cpu")
    window = Window(5, None, None)
    loss = cell(x_BTD, state, window)[0].square().sum()
    other = cell(x_BTD * 3, state, window)[0].square().sum()

    first = torch.autograd.grad(loss, cell.weight_hh, retain_graph=True)
    torch.autograd.grad(other, cell.weight_hh)
    del other
    cell(x_BTD * 5, state, window)[0].square().sum().backward()

    assert_close(torch.autograd.grad(loss, cell.weight_hh), first)


def test_every_option_but_projection_runs_in_the_kernel():
    """The promise of speed: asking for an option must not drop a user to the loop."""
    options = {"layer_norm": True, "peephole": True, "zoneout": 0.1}
    cells = [cell_of("lstm", **options), cell_of("gru", layer_norm=True), cell_of("rnn", zoneout=0.1)]

    assert all(isinstance(cell, LoopedCell) and cell.kind for cell in cells)
    assert cell_of("lstm", projection_size=2).kind is None


def test_the_kernels_tanh_is_right_to_the_last_digits():
    """From where it is its argument to where it is 1: within two machine epsilons, and never beyond 1."""
    size = 35
    cell = LoopedElmanCell(size, ModelConfig(cell="rnn", hidden_size=size))
    with torch.no_grad():
        for parameter in cell.parameters():
            parameter.zero_()
        cell.weight_ih.copy_(torch.eye(size))
    x_N = torch.logspace(-6, 2, 300 * size)
    x_BTD = torch.cat([-x_N, x_N, torch.zeros(size)]).view(-1, 1, size)
    assert cell.runs_native(x_BTD)
    with torch.no_grad():
        y_BTH, _ = cell(x_BTD, {"h": torch.zeros(len(x_BTD), size)}, Window(1, None, None))

    wanted = x_BTD.double().tanh()
    assert ((y_BTH.double() - wanted).abs() <= 2 * torch.finfo(torch.float32).eps * wanted.abs()).all()
    assert y_BTH.abs().max() == 1
