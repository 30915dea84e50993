"""The laws that hold for every core, as properties over cells, sizes, lengths, resets and types."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from recurra.errors import ModelError
from recurra.models.backend import use_backend
from recurra.models.build import build_core
from recurra.models.config import ModelConfig, NtmConfig, RegularisationConfig
from recurra.models.core import Core, blank_padding, cut_at_resets


@pytest.fixture(autouse=True, scope="module", params=["auto", "eager"])
def each_backend(request):
    """Every law holds with the native kernels and without them."""
    with use_backend(request.param):
        yield


TOLERANCES = {torch.float64: 1e-11, torch.float32: 1e-5}
QUICK = settings(max_examples=25, deadline=None)


@dataclass
class Case:
    """A core with random weights and a window of features for it."""

    core: Core
    x_BTD: torch.Tensor
    lengths_B: torch.Tensor
    reset_BT: torch.Tensor

    @property
    def atol(self) -> float:
        return TOLERANCES[self.x_BTD.dtype]


@st.composite
def recurrent_configs(draw, *, bidirectional=False):
    cell = draw(st.sampled_from(["rnn", "gru", "lstm", "mingru", "minlstm"]))
    gated, size = cell in ("rnn", "gru", "lstm"), draw(st.integers(2, 5))
    return ModelConfig(
        cell=cell,
        nonlinearity=draw(st.sampled_from(["tanh", "relu"])),
        hidden_size=size,
        layers=draw(st.integers(1, 3)),
        residual=draw(st.booleans()),
        learned_initial_state=draw(st.booleans()),
        layer_norm=gated and draw(st.booleans()),
        peephole=cell == "lstm" and draw(st.booleans()),
        projection_size=draw(st.sampled_from([None, 1, size - 1])) if cell == "lstm" else None,
        regularisation=RegularisationConfig(zoneout=draw(st.sampled_from([0.0, 0.3])) if gated else 0.0),
        bidirectional=bidirectional,
    )


@st.composite
def ntm_configs(draw):
    ntm = NtmConfig(
        memory_rows=draw(st.integers(2, 7)),
        memory_width=draw(st.integers(1, 4)),
        read_heads=draw(st.integers(1, 3)),
        write_heads=draw(st.integers(1, 2)),
        shift_range=draw(st.integers(1, 2)),
        controller=draw(st.sampled_from(["lstm", "gru", "feed_forward"])),
        memory_start=draw(st.sampled_from(["constant", "learned", "random"])),
    )
    return ModelConfig(cell="ntm", hidden_size=draw(st.integers(1, 5)), ntm=ntm)


@st.composite
def windowed_configs(draw):
    inner = draw(st.one_of(recurrent_configs(), ntm_configs()))
    kind = draw(st.sampled_from(["additive", "multiplicative", "multi_head"]))
    return inner.model_copy(update={"attention": kind, "attention_window": draw(st.integers(2, 9))})


STEPPABLE = st.one_of(recurrent_configs(), ntm_configs(), windowed_configs())
ALL = st.one_of(STEPPABLE, recurrent_configs(bidirectional=True))


@st.composite
def cases(draw, configs=None):
    torch.manual_seed(draw(st.integers(0, 10_000)))
    dtype = draw(st.sampled_from([torch.float64, torch.float32]))
    batch, steps, size = draw(st.integers(1, 4)), draw(st.integers(1, 7)), draw(st.integers(1, 3))
    config = draw(configs if configs is not None else STEPPABLE)
    core = build_core(config, size).to(dtype).eval()
    with torch.no_grad():
        for parameter in core.parameters():
            parameter.normal_(std=0.5)
    lengths = draw(st.lists(st.integers(0, steps), min_size=batch, max_size=batch))
    chance = draw(st.sampled_from([0.0, 0.2, 1.0]))
    return Case(
        core, torch.randn(batch, steps, size, dtype=dtype), torch.tensor(lengths), torch.rand(batch, steps) < chance
    )


def step_through(core, x_BTD, state):
    outputs = []
    for x_BD in x_BTD.unbind(1):
        y_BH, state = core.step(x_BD, state)
        outputs.append(y_BH)
    return torch.stack(outputs, 1), state


@QUICK
@given(cases())
def test_forward_equals_step_repeated(case):
    """Serving steps what training ran as whole windows: both must predict the same."""
    stepped_BTH, stepped = step_through(case.core, case.x_BTD, case.core.zero_state(case.x_BTD.shape[0]))

    y_BTH, state = case.core(case.x_BTD)

    assert_close(y_BTH, stepped_BTH, atol=case.atol, rtol=case.atol)
    assert_close(state, stepped, atol=case.atol, rtol=case.atol)


@QUICK
@given(cases(ALL))
def test_a_batch_equals_its_rows_alone(case):
    """An answer must not depend on whom a request was batched with, nor on what stands in its padding."""
    padding_BT = torch.arange(case.x_BTD.shape[1]) >= case.lengths_B[:, None]
    x_BTD = case.x_BTD.masked_fill(padding_BT[:, :, None], float("nan"))

    y_BTH, state = case.core(x_BTD, None, case.lengths_B, case.reset_BT)

    for row, length in enumerate(case.lengths_B.tolist()):
        alone_1TH, state_1 = case.core(x_BTD[row : row + 1, :length], None, None, case.reset_BT[row : row + 1, :length])
        assert_close(y_BTH[row : row + 1, :length], alone_1TH, atol=case.atol, rtol=case.atol)
        assert not y_BTH[row, length:].any()
        for name, value in state_1.items():
            assert_close(state[name][row : row + 1], value, atol=case.atol, rtol=case.atol)


@QUICK
@given(cases(), st.data())
def test_a_split_window_with_carried_state_equals_the_whole(case, data):
    """Truncated backpropagation and sessions cut sequences anywhere."""
    cut = data.draw(st.integers(0, case.x_BTD.shape[1]))
    whole_BTH, whole = case.core(case.x_BTD, None, case.lengths_B, case.reset_BT)

    first = case.core(case.x_BTD[:, :cut], None, case.lengths_B.clamp(max=cut), case.reset_BT[:, :cut])
    rest = case.core(case.x_BTD[:, cut:], first[1], (case.lengths_B - cut).clamp(min=0), case.reset_BT[:, cut:])

    assert_close(torch.cat([first[0], rest[0]], 1), whole_BTH, atol=case.atol, rtol=case.atol)
    assert_close(rest[1], whole, atol=case.atol, rtol=case.atol)


@QUICK
@given(cases(ALL))
def test_a_reset_equals_separate_sequences(case):
    """Lanes and packed rows hold several sequences: none may see another."""
    steps = case.x_BTD.shape[1]
    y_BTH, _ = case.core(case.x_BTD, None, None, case.reset_BT)

    for row in range(case.x_BTD.shape[0]):
        starts = sorted({0, *case.reset_BT[row].nonzero().flatten().tolist()})
        for begin, end in zip(starts, [*starts[1:], steps], strict=True):
            alone_1TH, _ = case.core(case.x_BTD[row : row + 1, begin:end])
            assert_close(y_BTH[row : row + 1, begin:end], alone_1TH, atol=case.atol, rtol=case.atol)


@QUICK
@given(cases())
def test_a_given_state_is_only_read(case):
    """A session's state is written back only after its answer was sent: until then the old one must stand."""
    state = {name: value.clone() for name, value in case.core.zero_state(case.x_BTD.shape[0]).items()}
    before = {name: value.clone() for name, value in state.items()}

    case.core(case.x_BTD, state, case.lengths_B, case.reset_BT)
    case.core.step(case.x_BTD[:, 0], state)

    assert_close(state, before, atol=0, rtol=0)


@QUICK
@given(cases(ALL))
def test_the_spec_describes_the_state(case):
    """Engine, vault and checkpoint allocate from the spec alone."""
    _, state = case.core(case.x_BTD, None, case.lengths_B)

    for values in (state, case.core.zero_state(case.x_BTD.shape[0])):
        described = [(t.name, t.shape, t.dtype) for t in case.core.state_spec.tensors]
        assert described == [(n, tuple(v.shape[1:]), str(v.dtype).removeprefix("torch.")) for n, v in values.items()]


@settings(max_examples=15, deadline=None)
@given(cases(ALL))
def test_gradients_pass_the_finite_difference_check(case):
    """Padding, resets and starts take part in the gradient exactly, not about."""
    case.core.double()
    x_BTD = case.x_BTD.double().requires_grad_()
    state = {name: value.detach().clone() for name, value in case.core.zero_state(x_BTD.shape[0]).items()}
    real = [name for name, value in state.items() if value.is_floating_point()]

    def run(x, *values):
        start = state | dict(zip(real, values, strict=True))
        y_BTH, after = case.core(x, start, case.lengths_B, case.reset_BT)
        return y_BTH, *(after[name] for name in real)

    assert torch.autograd.gradcheck(run, (x_BTD, *(state[n].requires_grad_() for n in real)), fast_mode=True, atol=1e-6)


@settings(max_examples=15, deadline=None)
@given(cases(ALL))
def test_gradients_of_a_batch_are_the_sums_over_its_rows(case):
    """A gradient must not depend on how rows were dealt to workers."""
    case.core.double()
    x_BTD = case.x_BTD.double()
    parameters = [p for p in case.core.parameters() if p.numel()]

    def loss(rows):
        y_BTH, state = case.core(x_BTD[rows], None, case.lengths_B[rows], case.reset_BT[rows])
        return y_BTH.square().sum() + sum(value.square().sum() for value in state.values() if value.is_floating_point())

    whole = torch.autograd.grad(loss(slice(None)), parameters, materialize_grads=True, allow_unused=True)
    alone = [
        torch.autograd.grad(loss(slice(row, row + 1)), parameters, materialize_grads=True, allow_unused=True)
        for row in range(len(x_BTD))
    ]

    assert_close(list(whole), [sum(values) for values in zip(*alone, strict=True)], atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(
    "config",
    [*({"cell": cell} for cell in ("rnn", "gru", "lstm", "minlstm", "mingru", "ntm"))]
    + [
        {"cell": "lstm", "layer_norm": True, "peephole": True, "projection_size": 4, "regularisation": {"zoneout": 0.2}}
    ],
    ids=lambda config: "-".join(config.values()) if len(config) == 1 else "options",
)
def test_bfloat16_autocast_stays_finite_and_keeps_the_state_in_float32(config, training):
    """Mixed precision is for products; a state that loses digits at every step would drift."""
    torch.manual_seed(0)
    core = build_core(ModelConfig(hidden_size=6, **config), 3).train(training)

    with torch.autocast("cpu", dtype=torch.bfloat16):
        y_BTH, state = core(torch.randn(2, 30, 3) * 10, None, torch.tensor([30, 12]))

    assert y_BTH.isfinite().all()
    assert {value.dtype for value in state.values()} == {torch.float32}


def test_a_bidirectional_core_refuses_to_step_and_says_what_to_use():
    """Sessions of such a model cannot exist; the message is what the client sees."""
    core = build_core(ModelConfig(cell="lstm", hidden_size=3, bidirectional=True), 2)

    assert not core.steppable
    with pytest.raises(ModelError, match=r"cannot step.*/v1/predict.*model\.bidirectional: false"):
        core.step(torch.zeros(1, 2), core.zero_state(1))


def test_a_core_without_memory_says_that_it_has_no_weightings():
    """Reports ask every model; only an NTM can answer."""
    core = build_core(ModelConfig(cell="gru", hidden_size=3), 2)

    with pytest.raises(ModelError, match=r"no weightings to show\. Only model\.cell: ntm"):
        core.trace(torch.zeros(1, 1, 2))


def test_resets_in_padding_do_not_cut():
    """A filler step is no step."""
    reset_BT = torch.tensor([[False, True, False, True]])

    segments = cut_at_resets(4, torch.tensor([3]), reset_BT)

    assert [(s.begin, s.end) for s in segments] == [(0, 1), (1, 4)]


@pytest.mark.parametrize("steps_first", [False, True])
def test_padding_is_blanked_whatever_stood_there(steps_first):
    """Values and gradients, however they lie in memory; rows without a real step, and full ones, too."""
    shape = (5, 3, 4) if steps_first else (3, 5, 4)
    x_BTD = torch.randn(shape, requires_grad=True)
    values_BTD = x_BTD.transpose(0, 1) if steps_first else x_BTD
    padding_BT1 = (torch.arange(5) >= torch.tensor([2, 0, 5])[:, None])[:, :, None]

    blanked_BTD = blank_padding(values_BTD.masked_fill(padding_BT1, float("nan")), torch.tensor([2, 0, 5]))
    blanked_BTD.sum().backward()

    assert torch.equal(blanked_BTD, values_BTD.masked_fill(padding_BT1, 0))
    gradient_BTD = x_BTD.grad.transpose(0, 1) if steps_first else x_BTD.grad
    assert torch.equal(gradient_BTD, (~padding_BT1).float().expand(3, 5, 4))
