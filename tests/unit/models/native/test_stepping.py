"""Single native steps on each instruction set against torch's operations."""

from __future__ import annotations

import ctypes

import pytest
import torch
from torch.testing import assert_close

from recurra.models.config import ModelConfig, RegularisationConfig
from recurra.models.native.library import function, kernels
from recurra.models.native.stepping import FORMATS, Ends, StackInPlace, extension
from recurra.models.recurrent import RecurrentStack
from recurra.models.stepper import stack_layers

pytestmark = [
    pytest.mark.skipif(kernels() is None, reason="no C++ compiler on this machine"),
    pytest.mark.usefixtures("instruction_set"),
]


def pair(cell, sizes=(9, 37), layers=2, *, precision="float32", scale=1.0, **options):
    """A stack, and the native steps of it on states for 70 sequences."""
    torch.manual_seed(0)
    stack = RecurrentStack(ModelConfig(cell=cell, hidden_size=sizes[1], layers=layers, **options), sizes[0]).eval()
    with torch.no_grad():
        for parameter in stack.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1).mul_(scale)
    state = {name: value.clone() for name, value in stack.zero_state(70).items()}
    return stack, state, StackInPlace(stack_layers(stack, state), Ends(), precision=precision)


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


def need(precision, level=None):
    """Skip what this CPU, or the instruction set that the kernels are built for, does not have."""
    found = function("recurra_extension", returns_index=True)(ctypes.c_int64(FORMATS[precision]))
    if precision != "float32" and level not in (None, found) or precision == "bf16" and not found:
        pytest.skip("not on this CPU")


@pytest.mark.parametrize("precision", ["float32", "int8", "bf16"])
@pytest.mark.parametrize("cell", ["rnn", "gru", "lstm"])
def test_a_step_stays_finite_at_extremes(cell, precision):
    """Gates that are shut or open to the last bit, and inputs of any magnitude."""
    need(precision)
    for scale in (1e-6, 1e2, 1e4):
        _, state, native = pair(cell, precision=precision, scale=scale)
        for _ in range(20):
            assert native(torch.randn(3, 9) * scale, range(3)).isfinite().all()
        assert all(value.isfinite().all() for value in state.values())


SIZES = [(1, 1), (5, 31), (128, 96), (130, 200)]
"""Inputs and units: one tile and several, whole and cut, and columns that fill no panel."""


def linear_step(sizes, batch, precision):
    """One step of a layer that is linear but for its relu: what went in, the layer, and what came out."""
    depth, n = sizes
    stack, state, native = pair("rnn", (depth, n), 1, precision=precision, nonlinearity="relu")
    x_BD, h_BH = torch.randn(batch, depth), torch.randn(batch, n)
    state["0.h"][:batch] = h_BH
    return x_BD, h_BH, stack.cell("0"), native(x_BD, range(batch))


def exact_step(x_BD, h_BH, cell, rounded):
    """The same in float64 from rounded factors."""
    total = rounded(x_BD) @ rounded(cell.weight_ih).t() + rounded(h_BH) @ rounded(cell.weight_hh).t()
    return (total + cell.bias_ih.double() + cell.bias_hh.double()).detach().relu()


@pytest.mark.parametrize("batch", [1, 5, 33, 70])
@pytest.mark.parametrize("sizes", SIZES)
def test_8_bit_products_are_those_of_the_rounded_numbers(sizes, batch, extensions):
    """Integer sums are exact, so a step on rounded weights and inputs is known to the last digits."""
    need("int8", extensions)
    *parts, got = linear_step(sizes, batch, "int8")

    def rounded(values):
        unit = values.abs().amax(1, keepdim=True).double() / 127
        return (values / unit).round() * unit

    expected = exact_step(*parts, rounded)
    # A number that lies between two integers may be rounded to either: worth half a unit of both factors.
    assert_close(got.double(), expected, atol=2e-3 * float(expected.abs().max()), rtol=0)


@pytest.mark.parametrize("sizes", SIZES)
def test_8_bit_products_have_the_same_bits_whatever_takes_them(sizes, extensions):
    """A session may move to a replica on another CPU, and a batch may be large enough for tiles or not."""
    need("int8", extensions)
    *_, many = linear_step(sizes, 37, "int8")
    function("recurra_limit_extensions")(ctypes.c_int64(0))

    *_, alone = linear_step(sizes, 37, "int8")

    assert torch.equal(many, alone)


@pytest.mark.parametrize("batch", [1, 5, 33, 70])
@pytest.mark.parametrize("sizes", SIZES)
def test_bfloat16_products_are_those_of_the_rounded_numbers(sizes, batch, extensions):
    """Products of two bfloat16 are exact in float32; what is left is the rounding of up to 330 sums."""
    need("bf16", extensions)
    *parts, got = linear_step(sizes, batch, "bf16")

    expected = exact_step(*parts, lambda values: values.bfloat16().double())

    assert_close(got.double(), expected, atol=2e-6 * float(expected.abs().max()), rtol=2e-6)


@pytest.mark.parametrize("precision", ["int8", "bf16"])
def test_a_row_does_not_depend_on_its_batch(precision, extensions):
    """Tiles take sixteen rows, or two times sixteen, or what is left; a request's answer must not tell."""
    need(precision, extensions)
    _, state, native = pair("lstm", (70, 150), precision=precision)
    _, others, alone = pair("lstm", (70, 150), precision=precision)
    x_TBD = torch.randn(2, 53, 70)

    for x_BD in x_TBD:
        together = native(x_BD, range(53))
        for row in range(0, 53, 4):
            assert torch.equal(alone(x_BD[row : row + 1], [row])[0], together[row])

    assert all(torch.equal(state[name][:53:4], others[name][:53:4]) for name in state)


def test_the_instructions_of_a_precision_have_a_name(extensions):
    """Benchmarks and warnings say what they speak of."""
    assert extension("float32") == ""
    assert extension("int8") in ("", "AVX512-VNNI", "AMX-INT8")[: extensions + 1]
    assert extension("bf16") in ("", "AVX512-BF16", "AMX-BF16")[: extensions + 1]


def test_a_matrix_of_integers_has_a_row_of_zeros_without_a_scale():
    """A unit that regularisation has emptied must not divide by zero."""
    weight, columns = torch.zeros(1, 4), function("recurra_narrow_columns", returns_index=True)(ctypes.c_int64(1))
    values, scales = torch.ones(columns * 4, dtype=torch.int8), torch.ones(columns)
    offsets = torch.ones(columns, dtype=torch.int32)
    pointers = (ctypes.c_void_p(t.data_ptr()) for t in (weight, values, scales, offsets))

    function("recurra_pack_integers")(ctypes.c_int64(1), ctypes.c_int64(4), *pointers)

    assert not values.any() and not scales.any() and not offsets.any()
