"""Whole sequences over rows of state: what the model itself says, whoever else is in the batch."""

import pytest
import torch
from tests.unit.models.small_models import MODELS, SLOTS, inputs_of, model, slots_of
from torch.testing import assert_close

from recurra.models.backend import use_backend
from recurra.models.native import stepping
from recurra.models.native.library import kernels
from recurra.models.reader import PlainReader, build_reader
from recurra.models.state import select_rows
from recurra.models.stepper import build_stepper

BLANK = SLOTS - 1
LENGTHS = (3, 1, 9, 9, 2)
ROWS = (5, -1, 0, -1, 17)
needs_bfloat16 = pytest.mark.skipif(not stepping.extension("bf16"), reason="no bfloat16 on this CPU")
needs_kernels = pytest.mark.skipif(kernels() is None, reason="no C++ compiler on this machine")


@pytest.fixture(autouse=True, scope="module", params=["auto", "eager"])
def each_backend(request):
    """What is said here holds with the native kernels and without them."""
    with use_backend(request.param):
        yield


def reader_of(read, state, **options):
    return build_reader(read, state, BLANK, build_stepper(read, state, **options))


def parts_of(read, lengths=LENGTHS):
    return [inputs_of(read, 1, length)[0].numpy() for length in lengths]


def busy_slots(read):
    """Slots that some sequences have advanced already; the blank row is as it was."""
    state = slots_of(read)
    stepper = build_stepper(read, state)
    for x_B in inputs_of(read, BLANK, 2).unbind(1):
        stepper.step(x_B, range(BLANK))
    return state


@pytest.mark.parametrize("every", [False, True])
@pytest.mark.parametrize("kind", MODELS)
def test_reading_gives_what_the_model_gives_each_sequence_alone(kind, every):
    """Lengths, neighbours, and whether a sequence goes on or starts anew must not show."""
    cell, changes = MODELS[kind]
    read = model(cell, **changes)
    state = busy_slots(read)
    before = {name: value.clone() for name, value in state.items()}
    parts = parts_of(read)

    outputs = reader_of(read, state).read(parts, ROWS, every=every)

    for place, (part, row) in enumerate(zip(parts, ROWS, strict=True)):
        with torch.no_grad():
            start = None if row < 0 else select_rows(before, torch.tensor([row]))
            expected, after = read(torch.from_numpy(part)[None], start)
        wanted = expected[0, : len(part)] if every and expected.dim() == 3 else expected[0]
        if not every and expected.dim() == 3:
            wanted = wanted[-1]
        assert_close(outputs[place][: len(part)] if wanted.dim() == 2 else outputs[place], wanted, atol=1e-5, rtol=1e-5)
        for name in state if row >= 0 else ():
            assert_close(state[name][row], after[name][0], atol=1e-5, rtol=1e-5)
    others = sorted(set(range(SLOTS)) - set(ROWS))
    assert all(torch.equal(state[name][others], before[name][others]) for name in state)


@needs_kernels
@pytest.mark.parametrize("table_bytes", [0, 1 << 20])
@pytest.mark.parametrize("kind", ["rnn", "relu", "gru-options", "lstm", "lstm-options", "tied", "pooled"])
def test_reading_natively_gives_the_bits_of_single_steps(kind, table_bytes, monkeypatch):
    """So a session may be replayed in one go, and an answer does not depend on who came with it."""
    monkeypatch.setattr(stepping, "TABLE_BYTES", table_bytes)
    cell, changes = MODELS[kind]
    read = model(cell, **changes)
    stepped = busy_slots(read)
    together = {name: value.clone() for name, value in stepped.items()}
    with use_backend("auto"):
        stepper, reader = build_stepper(read, stepped), reader_of(read, together)
    parts = parts_of(read, (1, 40, 7, 7))
    rows = [3, 1, 8, 0]

    outputs = reader.read(parts, rows, every=False)

    for place, (part, row) in enumerate(zip(parts, rows, strict=True)):
        for x in torch.from_numpy(part):
            (last_K,) = stepper.step(x[None], [row])
        assert torch.equal(outputs[place], last_K)
    assert all(torch.equal(together[name], stepped[name]) for name in stepped)


@needs_kernels
@pytest.mark.parametrize("precision", ["int8", pytest.param("bf16", marks=needs_bfloat16)])
def test_narrow_steps_do_not_make_reading_inexact(precision):
    """`step_precision` promises so."""
    read = model("lstm")
    parts = parts_of(read)
    with use_backend("auto"):
        exact, beside = reader_of(read, slots_of(read)), reader_of(read, slots_of(read), precision=precision)

    assert torch.equal(beside.read(parts, ROWS, every=False), exact.read(parts, ROWS, every=False))


@pytest.mark.parametrize("kind", ["tied", "ntm-tokens"])
def test_a_token_that_does_not_exist_changes_nothing(kind):
    """Else the others could not be read again without it."""
    cell, changes = MODELS[kind]
    read = model(cell, **changes)
    state = slots_of(read)
    before = {name: value.clone() for name, value in state.items()}
    parts = parts_of(read, (4, 4))
    parts[1][2] = 7

    with pytest.raises(IndexError):
        reader_of(read, state).read(parts, [0, 1], every=False)

    assert all(torch.equal(value, before[name]) for name, value in state.items())


@needs_kernels
@pytest.mark.parametrize(("rows", "lengths", "width"), [([SLOTS], [2], 3), ([0], [2], 4), ([0, 1], [2, 0], 3)])
def test_native_reading_refuses_what_does_not_exist(rows, lengths, width):
    """The kernels see bare pointers: a wrong row would be somebody else's memory."""
    read = model("lstm")
    state = slots_of(read)
    with use_backend("auto"):
        reader = reader_of(read, state)

    with pytest.raises(IndexError, match="cannot be read"):
        reader.read([torch.zeros(length, width).numpy() for length in lengths], rows, every=False)


@needs_kernels
def test_torchs_kernels_read_where_they_have_the_threads_for_it(monkeypatch):
    """The native kernel uses one thread, whatever the replica was given."""
    read = model("lstm")
    seen = []
    monkeypatch.setattr(PlainReader, "read", lambda self, parts, rows, *, every: seen.append(len(parts)))
    with use_backend("auto"):
        reader = reader_of(read, slots_of(read))

    for threads, count in ((1, 9), (2, 9), (4, 7), (4, 9)):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        reader.read(parts_of(read, [2] * count), [-1] * count, every=False)

    assert seen == [9]
