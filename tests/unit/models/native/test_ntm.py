"""The native kernel against torch's operations, which other tests hold to the paper."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from recurra.models.backend import use_backend
from recurra.models.config import ModelConfig, NtmConfig
from recurra.models.native.library import kernels
from recurra.models.ntm import NtmCore

pytestmark = [
    pytest.mark.skipif(kernels() is None, reason="no C++ compiler on this machine"),
    pytest.mark.usefixtures("instruction_set"),
]


@st.composite
def cases(draw):
    """A core with random weights, inputs, lengths and resets, in float64; sizes that no vector length divides."""
    read_heads, write_heads = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    ntm = NtmConfig(
        memory_rows=draw(st.sampled_from([2, 3, 7, 16, 40])),
        memory_width=draw(st.integers(1, 9)),
        read_heads=read_heads,
        write_heads=write_heads,
        paired_heads=write_heads <= read_heads and draw(st.booleans()),
        shift_range=draw(st.integers(1, 3)),
        controller=draw(st.sampled_from(["lstm", "gru", "feed_forward"])),
        backward_limit=draw(st.sampled_from([None, 0.05])),
    )
    torch.manual_seed(draw(st.integers(0, 10_000)))
    core = NtmCore(ModelConfig(cell="ntm", hidden_size=draw(st.integers(1, 20)), ntm=ntm), 3).double()
    with torch.no_grad():
        for parameter in core.parameters():
            parameter.normal_(std=0.5)
    batch, steps = draw(st.sampled_from([1, 2, 3, 5, 9])), draw(st.integers(1, 6))
    lengths_B = torch.randint(0, steps + 1, (batch,)) if draw(st.booleans()) else None
    reset_BT = torch.rand(batch, steps) < 0.3 if draw(st.booleans()) else None
    return core, torch.randn(batch, steps, 3, dtype=torch.float64), lengths_B, reset_BT


def everything(core, x_BTD, lengths_B, reset_BT):
    """Outputs, state and all gradients of one fixed linear function of them."""
    x_BTD = x_BTD.detach().requires_grad_()
    y_BTH, state = core(x_BTD, None, lengths_B, reset_BT)
    generator = torch.Generator().manual_seed(0)
    values = [y_BTH, *state.values()]
    loss = sum((v * torch.randn(v.shape, generator=generator, dtype=torch.float64).to(v.dtype)).sum() for v in values)
    wanted = [x_BTD, *core.parameters()]
    gradients = torch.autograd.grad(loss, wanted, allow_unused=True, materialize_grads=True)
    return [v.detach() for v in values], list(gradients)


@settings(max_examples=40, deadline=None)
@given(cases())
def test_values_and_gradients_equal_those_of_torchs_operations(case):
    """Any sizes, heads, controllers, lengths and resets: the kernel is the same function."""
    with use_backend("eager"):
        expected = everything(*case)

    assert_close(everything(*case), expected, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("batch", [1, 32])
def test_float32_is_within_1e5_of_float64_and_its_gradients_within_1e4(batch):
    """The sizes of the paper's copy task, against float64 on torch's operations."""
    torch.manual_seed(0)
    core = NtmCore(ModelConfig(cell="ntm", hidden_size=100), 9)
    x_BTD = (torch.rand(batch, 21, 9) > 0.5).float()

    values, gradients = everything(core, x_BTD, None, None)

    with use_backend("eager"):
        exact_values, exact_gradients = everything(core.double(), x_BTD.double(), None, None)
    for value, exact in zip(values, exact_values, strict=True):
        assert_close(value.double(), exact, atol=1e-5, rtol=1e-5)
    for value, exact in zip(gradients, exact_gradients, strict=True):
        assert_close(value.double(), exact, atol=1e-4 * float(exact.abs().max()) + 1e-7, rtol=0)


@pytest.mark.parametrize("scale", [1e-6, 1e2, 1e4])
@pytest.mark.parametrize("controller", ["lstm", "gru", "feed_forward"])
def test_everything_stays_finite_at_extremes(scale, controller):
    """A kernel built with -ffast-math gave NaN after 8,000 sequences: an infinite exponential in a reciprocal."""
    torch.manual_seed(0)
    ntm = NtmConfig(memory_rows=20, memory_width=5, controller=controller)
    core = NtmCore(ModelConfig(cell="ntm", hidden_size=10, ntm=ntm), 3)
    with torch.no_grad():
        for parameter in core.parameters():
            parameter.normal_(std=scale)

    y_BTH, state = core(torch.randn(2, 30, 3) * scale)
    _, gradients = everything(core, torch.randn(2, 4, 3) * scale, None, None)  # more steps of a GRU overflow by right

    assert y_BTH.isfinite().all() and all(value.isfinite().all() for value in state.values())
    assert all(value.isfinite().all() for value in gradients)


def test_gradients_pass_the_finite_difference_check():
    """The backward pass is written by hand, so it is checked against the forward pass itself."""
    torch.manual_seed(0)
    ntm = NtmConfig(memory_rows=5, memory_width=3, read_heads=2, write_heads=2)
    core = NtmCore(ModelConfig(cell="ntm", hidden_size=4, ntm=ntm), 2).double()
    state = {n: v.detach().clone().requires_grad_() for n, v in core.zero_state(2).items()}
    x_BTD = torch.randn(2, 4, 2, dtype=torch.float64, requires_grad=True)

    def run(x, *values):
        y_BTH, after = core(x, dict(zip(state, values, strict=True)), torch.tensor([4, 2]))
        return y_BTH, *after.values()

    assert torch.autograd.gradcheck(run, (x_BTD, *state.values()), atol=1e-6)


def test_a_graph_can_be_walked_twice_and_workspaces_are_used_again():
    """A workspace that went back too early would give the second walk somebody else's numbers."""
    torch.manual_seed(0)
    core = NtmCore(ModelConfig(cell="ntm", hidden_size=4), 2)
    x_BTD = torch.randn(2, 5, 2)
    loss = core(x_BTD)[0].square().sum()
    other = core(x_BTD * 3)[0].square().sum()

    first = torch.autograd.grad(loss, core.heads.weight, retain_graph=True)
    torch.autograd.grad(other, core.heads.weight)
    del other
    core(x_BTD * 5)[0].square().sum().backward()

    assert_close(torch.autograd.grad(loss, core.heads.weight), first)


def test_slices_and_transposed_inputs_are_read_as_they_are_meant():
    """The kernel sees bare pointers: strides are somebody else's job."""
    torch.manual_seed(0)
    core = NtmCore(ModelConfig(cell="ntm", hidden_size=4), 2)
    state = {name: torch.stack([value, value + 1], -1)[..., 0] for name, value in core.zero_state(2).items()}
    x_TBD = torch.randn(5, 2, 4)[:, :, ::2]

    with use_backend("eager"):
        expected = core(x_TBD.transpose(0, 1), state)

    assert_close(core(x_TBD.transpose(0, 1), state), expected)
