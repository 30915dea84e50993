"""The window with gradients written by hand against the step-by-step equations of `addressing.py` and torch's own gradients."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from recurra.models.backend import use_backend
from recurra.models.config import ModelConfig, NtmConfig
from recurra.models.ntm import NtmCore


@pytest.fixture(autouse=True)
def without_kernels():
    with use_backend("eager"):
        yield


@st.composite
def cases(draw):
    """A core with random weights, inputs, lengths and resets; shifts that go round more than once, too."""
    read_heads, write_heads = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    ntm = NtmConfig(
        memory_rows=draw(st.sampled_from([2, 3, 8])),
        memory_width=draw(st.integers(1, 5)),
        read_heads=read_heads,
        write_heads=write_heads,
        paired_heads=write_heads <= read_heads and draw(st.booleans()),
        shift_range=draw(st.integers(1, 3)),
        controller=draw(st.sampled_from(["lstm", "gru", "feed_forward"])),
    )
    torch.manual_seed(draw(st.integers(0, 10_000)))
    core = NtmCore(ModelConfig(cell="ntm", hidden_size=draw(st.integers(1, 6)), ntm=ntm), 3).double()
    with torch.no_grad():
        for parameter in core.parameters():
            parameter.normal_(std=0.5)
    batch, steps = draw(st.integers(1, 4)), draw(st.integers(1, 5))
    lengths_B = torch.randint(0, steps + 1, (batch,)) if draw(st.booleans()) else None
    reset_BT = torch.rand(batch, steps) < 0.3 if draw(st.booleans()) else None
    return core, torch.randn(batch, steps, 3, dtype=torch.float64), lengths_B, reset_BT


def everything(run, core, x_BTD, *rows):
    """Outputs, state and all gradients of one fixed linear function of them."""
    x_BTD = x_BTD.detach().requires_grad_()
    y_BTH, state = run(x_BTD, None, *rows)[:2]
    generator = torch.Generator().manual_seed(0)
    values = [y_BTH, *state.values()]
    loss = sum((v * torch.randn(v.shape, generator=generator, dtype=v.dtype)).sum() for v in values)
    gradients = torch.autograd.grad(loss, [x_BTD, *core.parameters()], allow_unused=True, materialize_grads=True)
    return [v.detach() for v in values], list(gradients)


@settings(max_examples=60, deadline=None)
@given(cases())
def test_values_and_gradients_are_those_of_the_equations(case):
    """`trace` runs one readable step after another on torch's own gradients; training must do the same, only faster."""
    core, *rest = case

    expected = everything(core.trace, core, *rest)

    assert_close(everything(core.forward, core, *rest), expected, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("controller", ["lstm", "gru", "feed_forward"])
def test_the_gradient_of_the_state_is_limited_between_steps(controller):
    """As the paper does it; step by step, with every part of the state passed through a node that clamps its gradient."""
    torch.manual_seed(0)
    ntm = NtmConfig(memory_rows=5, memory_width=3, controller=controller, backward_limit=0.1)
    core = NtmCore(ModelConfig(cell="ntm", hidden_size=4, ntm=ntm), 3).double()
    x_BTD = torch.randn(2, 6, 3, dtype=torch.float64)

    def by_steps(x_BTD, state):
        state, outputs = core.zero_state(2), []
        for x_BD in x_BTD.unbind(1):
            y_BH, state = core.step(x_BD, {name: Limited.apply(value, 0.1) for name, value in state.items()})
            outputs.append(y_BH)
        return torch.stack(outputs, 1), state

    expected = everything(by_steps, core, x_BTD)

    assert_close(everything(core.forward, core, x_BTD), expected, atol=1e-10, rtol=1e-10)
    core.config = NtmConfig(**{**ntm.model_dump(), "backward_limit": None})
    free = everything(core.forward, core, x_BTD)
    assert not torch.allclose(free[1][0], expected[1][0], atol=1e-3), "the limit did something"


class Limited(torch.autograd.Function):
    @staticmethod
    def forward(ctx, value, limit):
        ctx.limit = limit
        return value.view_as(value)

    @staticmethod
    def backward(ctx, d_value):
        return d_value.clamp(-ctx.limit, ctx.limit), None


def test_gradients_pass_the_finite_difference_check():
    """Towards the state before the window, too: truncated backpropagation begins anywhere."""
    torch.manual_seed(0)
    ntm = NtmConfig(memory_rows=5, memory_width=3, read_heads=2, write_heads=1)
    core = NtmCore(ModelConfig(cell="ntm", hidden_size=4, ntm=ntm), 2).double()
    state = {n: v.detach().clone().requires_grad_() for n, v in core.zero_state(2).items()}
    x_BTD = torch.randn(2, 4, 2, dtype=torch.float64, requires_grad=True)

    def run(x, *values):
        y_BTH, after = core(x, dict(zip(state, values, strict=True)), torch.tensor([4, 2]))
        return y_BTH, *after.values()

    assert torch.autograd.gradcheck(run, (x_BTD, *state.values()), atol=1e-6)


@pytest.mark.parametrize("scale", [1e-6, 1e2, 1e4])
def test_everything_stays_finite_at_extremes(scale):
    """Quotients of the backward pass must not divide by what a shut gate has made zero."""
    torch.manual_seed(0)
    core = NtmCore(ModelConfig(cell="ntm", hidden_size=10, ntm=NtmConfig(memory_rows=20, memory_width=5)), 3)
    with torch.no_grad():
        for parameter in core.parameters():
            parameter.normal_(std=scale)

    y_BTH, state = core(torch.randn(2, 30, 3) * scale)
    _, gradients = everything(core.forward, core, torch.randn(2, 4, 3) * scale)  # those of more steps overflow by right

    assert y_BTH.isfinite().all() and all(value.isfinite().all() for value in state.values())
    assert all(value.isfinite().all() for value in gradients)


def test_a_graph_can_be_walked_twice():
    """Buffers that the first walk wrote into would spoil the second one."""
    torch.manual_seed(0)
    core = NtmCore(ModelConfig(cell="ntm", hidden_size=4), 2)
    loss = core(torch.randn(2, 5, 2), None, torch.tensor([5, 3]))[0].square().sum()

    first = torch.autograd.grad(loss, core.heads.weight, retain_graph=True)

    assert_close(torch.autograd.grad(loss, core.heads.weight), first)


def test_a_parameter_that_was_changed_in_between_is_noticed():
    """The backward pass would use weights that the forward pass never saw."""
    core = NtmCore(ModelConfig(cell="ntm", hidden_size=4), 2)
    loss = core(torch.randn(1, 3, 2))[0].sum()
    with torch.no_grad():
        core.heads.weight.add_(1)

    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
