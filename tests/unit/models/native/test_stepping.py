"""Single native steps on each instruction set against torch's operations."""

from __future__ import annotations

import ctypes

import pytest
import torch
from torch.testing import assert_close

from recurra.models.config import ModelConfig, RegularisationConfig
from recurra.models.native.library import function, kernels
from recurra.models.native.stepping import Ends, StackInPlace
from recurra.models.recurrent import RecurrentStack
from recurra.models.stepper import stack_layers

pytestmark = [
    pytest.mark.skipif(kernels() is None, reason="no C++ compiler on this machine"),
    pytest.mark.usefixtures("instruction_set"),
]


def pair(cell, sizes=(9, 37), layers=2, *, integers=False, scale=1.0, **options):
    """A stack, and the native steps of it on states for 70 sequences."""
    torch.manual_seed(0)
    stack = RecurrentStack(ModelConfig(cell=cell, hidden_size=sizes[1], layers=layers, **options), sizes[0]).eval()
    with torch.no_grad():
        for parameter in stack.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1).mul_(scale)
    state = {name: value.clone() for name, value in stack.zero_state(70).items()}
    return stack, state, StackInPlace(stack_layers(stack, state), Ends(), integers=integers)


@pytest.mark.parametrize("batch", [1, 2, 3, 4, 7, 8, 33, 65])
@pytest.mark.parametrize("cell", ["rnn", "gru", "lstm"])
def test_a_step_is_that_of_torchs_operations(cell, batch):
    """Any number of rows, and sizes that no vector length divides."""
    stack, state, native = pair(cell, layer_norm=batch % 2 == 0, regularisation=RegularisationConfig(zoneout=0.1))
    expected, x_TBD = stack.zero_state(batch), torch.randn(5, batch, 9)

    for x_BD in x_TBD:
        with torch.no_grad():
            y_BH, expected = stack.step(x_BD, expected)
        assert_close(native(x_BD, range(batch)), y_BH, atol=1e-5, rtol=1e-5)

    assert_close({name: value[:batch] for name, value in state.items()}, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("integers", [False, True])
@pytest.mark.parametrize("cell", ["rnn", "gru", "lstm"])
def test_a_step_stays_finite_at_extremes(cell, integers):
    """Gates that are shut or open to the last bit, and inputs of any magnitude."""
    for scale in (1e-6, 1e2, 1e4):
        _, state, native = pair(cell, integers=integers, scale=scale)
        for _ in range(20):
            assert native(torch.randn(3, 9) * scale, range(3)).isfinite().all()
        assert all(value.isfinite().all() for value in state.values())


@pytest.mark.parametrize("sizes", [(1, 1), (5, 31), (128, 96), (130, 200)])
def test_8_bit_products_are_those_of_the_rounded_numbers(sizes):
    """Integer sums are exact, so a step on rounded weights and inputs is known to the last digits, on every CPU."""
    depth, n = sizes
    torch.manual_seed(0)
    stack, state, native = pair("rnn", (depth, n), 1, integers=True, nonlinearity="relu")
    cell = stack.cell("0")
    x_BD, h_BH = torch.randn(5, depth), torch.randn(5, n)
    state["0.h"][:5] = h_BH

    def rounded(values):
        unit = values.abs().amax(1, keepdim=True).double() / 127
        return (values / unit).round() * unit

    total = sum(
        rounded(values) @ rounded(weight.detach()).t() + bias.detach().double()
        for values, weight, bias in ((x_BD, cell.weight_ih, cell.bias_ih), (h_BH, cell.weight_hh, cell.bias_hh))
    )

    # A number that lies between two integers may be rounded to either: worth half a unit of both factors.
    assert_close(native(x_BD, range(5)).double(), total.relu(), atol=2e-3 * float(total.abs().max()), rtol=0)


def test_a_matrix_of_integers_has_a_row_of_zeros_without_a_scale():
    """A unit that regularisation has emptied must not divide by zero."""
    weight, columns = torch.zeros(1, 4), function("recurra_integers_columns", returns_index=True)(ctypes.c_int64(1))
    values, scales = torch.ones(columns * 4, dtype=torch.int8), torch.ones(columns)
    sums = torch.ones(columns, dtype=torch.int32)
    pointers = (ctypes.c_void_p(t.data_ptr()) for t in (weight, values, scales, sums))

    function("recurra_pack_integers")(ctypes.c_int64(1), ctypes.c_int64(4), *pointers)

    assert not values.any() and not scales.any() and not sums.any()
