import ctypes

import pytest
import torch
from tests.unit.models.small_models import MODELS, SLOTS, TOKENS, inputs_of, model, slots_of
from torch.testing import assert_close

from recurra.errors import ConfigError, ModelError
from recurra.models.backend import use_backend
from recurra.models.native.library import function, kernels
from recurra.models.native.stepping import extension
from recurra.models.stepper import NtmStepper, PlainStepper, StackStepper, build_stepper

needs_kernels = pytest.mark.skipif(kernels() is None, reason="no C++ compiler on this machine")
needs_bfloat16 = pytest.mark.skipif(not extension("bf16"), reason="no bfloat16 on this CPU")
BF16 = pytest.param("bf16", marks=needs_bfloat16)


@pytest.fixture(autouse=True, scope="module", params=["auto", "eager"])
def each_backend(request):
    """What is said here holds with the native kernels and without them."""
    with use_backend(request.param):
        yield


@pytest.mark.parametrize("batch", [1, 3, 6, SLOTS])
@pytest.mark.parametrize("kind", MODELS)
def test_stepping_in_place_gives_what_the_whole_sequence_gives(kind, batch):
    """A stream must not answer otherwise than a request; and slots that were not named must stay as they are."""
    cell, changes = MODELS[kind]
    stepped = model(cell, **changes)
    state = slots_of(stepped)
    before = {name: value.clone() for name, value in state.items()}
    stepper = build_stepper(stepped, state)
    rows = torch.randperm(SLOTS)[:batch].tolist()
    inputs = inputs_of(stepped, batch, 7)

    outputs = [stepper.step(x_B, rows) for x_B in inputs.unbind(1)]

    with torch.no_grad():
        expected, after = stepped(inputs)
    whole = torch.stack(outputs, 1) if stepped.shape.per_step else outputs[-1]
    # Both are float32: normalising five units magnifies what they round: torch itself is 1.4e-5 off float64.
    assert_close(whole, expected, atol=5e-5, rtol=1e-5)
    others = sorted(set(range(SLOTS)) - set(rows))
    for name, value in state.items():
        assert_close(value[rows], after[name], atol=5e-5, rtol=1e-5)
        assert torch.equal(value[others], before[name][others])


@needs_kernels
@pytest.mark.parametrize("precision", ["float32", "int8", BF16])
@pytest.mark.parametrize("kind", ["rnn", "gru-options", "lstm", "ntm"])
def test_native_numbers_do_not_depend_on_the_batch(kind, precision):
    """So a server that promises the same bits for the same request needs no batches of one shape."""
    if kind == "ntm" and precision != "float32":
        pytest.skip("an NTM has no such step")
    cell, changes = MODELS[kind]
    stepped = model(cell, **changes)
    together, alone = slots_of(stepped), slots_of(stepped)
    inputs = inputs_of(stepped, 9, 4)
    with use_backend("auto"):
        many, one = (build_stepper(stepped, state, precision=precision) for state in (together, alone))

    for x_BD in inputs.unbind(1):
        outputs = many.step(x_BD, range(9))
        for row in range(9):
            assert torch.equal(one.step(x_BD[row : row + 1], [row])[0], outputs[row])

    assert all(torch.equal(together[name], alone[name]) for name in together)


def test_batches_of_a_fixed_number_of_rows_give_every_row_the_same_bits():
    """Products of other shapes may round otherwise; a request's answer shall not depend on its neighbours."""
    stepped = model("mingru")
    together, alone = slots_of(stepped), slots_of(stepped)
    many, one = build_stepper(stepped, together, fixed_rows=4), build_stepper(stepped, alone, fixed_rows=4)
    x_BD = inputs_of(stepped, 9, 1)[:, 0]

    outputs = many.step(x_BD, range(9))

    for row in range(9):
        assert torch.equal(one.step(x_BD[row : row + 1], [row])[0], outputs[row])
    assert all(torch.equal(together[name], alone[name]) for name in together)


@needs_kernels
@pytest.mark.parametrize(
    ("precision", "largest", "typical"), [("int8", 0.06, 0.02), pytest.param("bf16", 0.01, 0.012, marks=needs_bfloat16)]
)
@pytest.mark.parametrize("kind", ["rnn", "relu", "gru", "lstm", "gru-options", "lstm-options"])
def test_narrow_steps_stay_near_the_exact_ones(kind, precision, largest, typical):
    """The loss that the option's description names, over fifty steps: an error must not grow with the stream."""
    cell, changes = MODELS[kind]
    stepped = model(cell, **changes)
    state = slots_of(stepped)
    with use_backend("auto"):
        stepper = build_stepper(stepped, state, precision=precision)
    inputs = inputs_of(stepped, 3, 50)

    outputs = torch.stack([stepper.step(x_BD, range(3)) for x_BD in inputs.unbind(1)], 1)

    with torch.no_grad():
        expected, _ = stepped(inputs)
    assert (outputs - expected).abs().max() < largest * (expected.max() - expected.min())
    assert (outputs - expected).square().mean().sqrt() < typical * expected.std()


@needs_kernels
@pytest.mark.parametrize("precision", ["int8", BF16])
def test_narrow_steps_exist_only_where_they_are_native(precision):
    """Whoever asked for the speed must hear that it is not to be had."""
    for stepped in (model("ntm"), model("mingru"), model("lstm", projection_size=2), model("gru").double()):
        with use_backend("auto"), pytest.raises(ConfigError, match=rf"precision is {precision}.*Set it to float32"):
            build_stepper(stepped, slots_of(stepped), precision=precision)


@needs_kernels
def test_a_cpu_without_bfloat16_steps_in_float32_and_says_so():
    """One job file serves a cluster of old and new nodes."""
    stepped = model("lstm")
    one, other = slots_of(stepped), slots_of(stepped)
    limit = function("recurra_limit_extensions")
    limit(ctypes.c_int64(0))
    try:
        with pytest.warns(RuntimeWarning, match="neither AMX-BF16 nor AVX512-BF16.*in float32"):
            stepper = build_stepper(stepped, one, precision="bf16")
    finally:
        limit(ctypes.c_int64(2))
    x_BD = inputs_of(stepped, 3, 1)[:, 0]

    assert torch.equal(stepper.step(x_BD, range(3)), build_stepper(stepped, other).step(x_BD, range(3)))


@needs_kernels
def test_native_steppers_are_chosen_where_they_can_be():
    """Float32 on the CPU and cells that the kernels know; everything else steps as ever."""
    native = [("lstm", StackStepper), ("gru-options", StackStepper), ("tied", StackStepper), ("ntm-tokens", NtmStepper)]
    plain = [
        model("mingru"),
        model("lstm", projection_size=2),
        model("gru").double(),
        model(MODELS["mean"][0], **MODELS["mean"][1]),
    ]
    with use_backend("auto"):
        for kind, stepper in native:
            cell, changes = MODELS[kind]
            assert isinstance(build_stepper(model(cell, **changes), slots_of(model(cell, **changes))), stepper)
        assert all(isinstance(build_stepper(other, slots_of(other)), PlainStepper) for other in plain)
    with use_backend("eager"):
        assert isinstance(build_stepper(model("lstm"), slots_of(model("lstm"))), PlainStepper)


@needs_kernels
@pytest.mark.parametrize("kind", ["lstm", "ntm"])
@pytest.mark.parametrize(("rows", "width"), [([0, SLOTS], 3), ([0, -1], 3), ([0, 1], 4), ([0], 3)])
def test_a_native_step_refuses_what_does_not_exist_and_changes_nothing(kind, rows, width):
    """The kernels see bare pointers: a wrong row would be somebody else's memory."""
    stepped = model(kind)
    state = slots_of(stepped)
    before = {name: value.clone() for name, value in state.items()}
    with use_backend("auto"):
        stepper = build_stepper(stepped, state)

    with pytest.raises(IndexError, match="cannot take"):
        stepper.step(torch.zeros(2, width), rows)

    assert all(torch.equal(value, before[name]) for name, value in state.items())


@pytest.mark.parametrize("token", [7, -1])
@pytest.mark.parametrize("cell", ["lstm", "ntm"])
def test_a_token_outside_of_the_vocabulary_fails_before_any_state_has_changed(cell, token):
    """One that breaks the batch fails alone: the others are stepped again, and must not be a step ahead."""
    stepped = model(cell, TOKENS)
    state = slots_of(stepped)
    before = {name: value.clone() for name, value in state.items()}
    stepper = build_stepper(stepped, state)

    with pytest.raises(IndexError):
        stepper.step(torch.tensor([0, token]), [0, 1])

    assert all(torch.equal(value, before[name]) for name, value in state.items())


@needs_kernels
@pytest.mark.parametrize("precision", ["float32", "int8", BF16])
def test_what_is_not_finite_comes_out_as_such(precision):
    """The engine answers such a step with an error; an 8-bit step that made a number of it would hide it."""
    for cell in ("rnn", "gru", "lstm"):
        stepped = model(cell)
        state = slots_of(stepped)
        with use_backend("auto"):
            stepper = build_stepper(stepped, state, precision=precision)

        outputs = stepper.step(torch.tensor([[0.0, float("nan"), 0.0], [0.0, 1.0, 0.0]]), [0, 1])

        assert not outputs[0].isfinite().any() and outputs[1].isfinite().all()


def test_outputs_are_kept_by_whoever_got_them():
    """The engine hands them on without a copy while it steps again."""
    stepped = model("lstm")
    stepper = build_stepper(stepped, slots_of(stepped))
    first = stepper.step(torch.ones(1, 3), [0])
    copy = first.clone()

    stepper.step(torch.zeros(1, 3), [0])

    assert torch.equal(first, copy)


def test_a_model_that_cannot_step_says_so():
    """The same words as from the model itself."""
    stepped = model("lstm", bidirectional=True)
    stepper = build_stepper(stepped, slots_of(stepped))

    with pytest.raises(ModelError, match="bidirectional model cannot step"):
        stepper.step(torch.ones(1, 3), [0])
