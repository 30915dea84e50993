import pytest
import torch
from torch.testing import assert_close

from recurra.errors import ModelError
from recurra.models.backend import use_backend
from recurra.models.config import ModelConfig, NtmConfig
from recurra.models.native.library import kernels
from recurra.models.sequence import ModelShape, SequenceModel
from recurra.models.stepper import NtmStepper, PlainStepper, build_stepper

FEATURES = ModelShape("features", 3, 2, per_step=True)


def model(cell, shape=FEATURES, **changes):
    torch.manual_seed(0)
    ntm = NtmConfig(memory_rows=9, memory_width=4, read_heads=2)
    return SequenceModel(ModelConfig(cell=cell, hidden_size=5, ntm=ntm, **changes), shape).eval()


@pytest.mark.parametrize("batch", [1, 3, 6])
@pytest.mark.parametrize("cell", ["lstm", "ntm"])
def test_stepping_in_place_gives_what_the_whole_sequence_gives(cell, batch):
    """A stream must not answer otherwise than a request."""
    stepped = model(cell)
    x_BTD = torch.randn(batch, 7, 3)
    stepper = build_stepper(stepped, batch)

    outputs = torch.stack([stepper.step(x_BD).clone() for x_BD in x_BTD.unbind(1)], 1)

    with torch.no_grad():
        expected, state = stepped(x_BTD)
    assert_close(outputs, expected, atol=1e-6, rtol=1e-5)
    assert_close(dict(stepper.state), state, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("cell", ["gru", "ntm"])
def test_a_stepper_goes_on_from_a_loaded_state_and_leaves_it_alone(cell):
    """A stream moves to another replica with its state, and the old one may still be read."""
    stepped = model(cell)
    with torch.no_grad():
        _, state = stepped(torch.randn(2, 5, 3))
    before = {name: value.clone() for name, value in state.items()}
    stepper = build_stepper(stepped, 2)

    stepper.load(state)
    output = stepper.step(torch.ones(2, 3)).clone()

    with torch.no_grad():
        assert_close(output, stepped.step(torch.ones(2, 3), state)[0])
    assert_close(state, before, atol=0, rtol=0)


def test_new_weights_are_used_at_once():
    """A stepper holds buffers, not weights: an update of the model must not be missed."""
    stepped = model("ntm")
    stepper = build_stepper(stepped, 1)
    with torch.no_grad():
        stepped.head.bias.add_(1)
        stepped.core.heads.weight.mul_(2)

    output = stepper.step(torch.ones(1, 3)).clone()

    with torch.no_grad():
        assert_close(output, stepped.step(torch.ones(1, 3), stepped.zero_state(1))[0])


@pytest.mark.skipif(kernels() is None, reason="no C++ compiler on this machine")
def test_the_native_stepper_is_chosen_where_it_can_be():
    """Float32 features on the CPU with a plain output layer; everything else steps as ever."""
    tokens = ModelShape("tokens", 4, 4, per_step=True)
    pooled = ModelShape("features", 3, 2, per_step=False)

    assert isinstance(build_stepper(model("ntm"), 1), NtmStepper)
    others = [model("ntm", tokens), model("ntm", pooled), model("lstm"), model("ntm").double()]
    assert all(isinstance(build_stepper(other, 1), PlainStepper) for other in others)
    with use_backend("eager"):
        assert isinstance(build_stepper(model("ntm"), 1), PlainStepper)


def test_a_model_that_cannot_step_says_so():
    """The same words as from the model itself."""
    stepper = build_stepper(model("lstm", bidirectional=True), 1)

    with pytest.raises(ModelError, match="bidirectional model cannot step"):
        stepper.step(torch.ones(1, 3))
