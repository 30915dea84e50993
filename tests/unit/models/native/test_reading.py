"""Whole sequences in one native call, on each instruction set, against torch's operations."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from recurra.models.config import ModelConfig
from recurra.models.native.library import kernels
from recurra.models.native.reading import StackReading
from recurra.models.native.stepping import Ends, StackInPlace
from recurra.models.recurrent import RecurrentStack
from recurra.models.stepper import stack_layers

pytestmark = [
    pytest.mark.skipif(kernels() is None, reason="no C++ compiler on this machine"),
    pytest.mark.usefixtures("instruction_set"),
]


@pytest.mark.parametrize("batch", [1, 3, 9, 64, 130])
@pytest.mark.parametrize(("cell", "sizes"), [("rnn", (37, 9)), ("gru", (9, 37)), ("lstm", (1, 70))])
def test_sequences_of_any_length_are_read_as_torch_reads_them(cell, sizes, batch):
    """More sequences, and more steps, than one block takes; sizes that no vector length divides."""
    torch.manual_seed(0)
    stack = RecurrentStack(ModelConfig(cell=cell, hidden_size=sizes[1], layers=2), sizes[0]).eval()
    state = {name: torch.randn(batch, value.shape[1]) for name, value in stack.zero_state(1).items()}
    before = {name: value.clone() for name, value in state.items()}
    reading = StackReading(StackInPlace(stack_layers(stack, state), Ends()))
    lengths_B = torch.randint(1, 150, (batch,))
    x_BTD = torch.randn(batch, 150, sizes[0])
    parts = [row[:length].numpy() for row, length in zip(x_BTD, lengths_B, strict=True)]

    every = reading(parts, range(batch), [-1] * batch, every=True)
    assert all(torch.equal(state[name], before[name]) for name in state)
    last = reading(parts, range(batch), range(batch), every=False)

    with torch.no_grad():
        y_BTH, after = stack(x_BTD, before, lengths_B)
    for row, length in enumerate(lengths_B):
        assert_close(every[row, :length], y_BTH[row, :length], atol=2e-5, rtol=1e-5)
        assert torch.equal(last[row], every[row, length - 1])
    assert_close(state, after, atol=2e-5, rtol=1e-5)
