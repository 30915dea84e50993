import numpy as np
import pytest
import torch

from recurra.models.config import ModelConfig
from recurra.models.sequence import ModelShape, SequenceModel
from recurra.training.lanes import LaneStates

SHAPE = ModelShape(input="tokens", input_size=5, output_size=5, per_step=True)


@pytest.fixture(params=["lstm", "ntm"])
def model(request):
    return SequenceModel(ModelConfig(cell=request.param, hidden_size=3), SHAPE)


def states_of(model, lanes, seed):
    torch.manual_seed(seed)
    return {name: torch.randn_like(value) for name, value in model.zero_state(len(lanes)).items()}


def test_a_lane_that_was_never_seen_starts_anew(model):
    """The first window of a run, and of a lane that a resize brings."""
    taken = LaneStates(model, "cpu").take(np.array([4, 7]))

    for name, value in model.zero_state(2).items():
        assert torch.equal(taken[name], value)


def test_states_follow_their_lanes_to_other_ranks(model):
    """Two ranks had four lanes; three ranks then share them otherwise."""
    lanes = [np.array([0, 1]), np.array([2, 3])]
    kept = [LaneStates(model, "cpu") for _ in lanes]
    states = [states_of(model, numbers, seed) for seed, numbers in enumerate(lanes)]
    for states_of_rank, numbers, state in zip(kept, lanes, states, strict=True):
        states_of_rank.put(numbers, state)

    resized = LaneStates(model, "cpu")
    resized.load([one.tensors() for one in kept])
    taken = resized.take(np.array([3, 1, 9]))

    fresh = model.zero_state(1)
    for name, value in taken.items():
        assert torch.equal(value[0], states[1][name][1])
        assert torch.equal(value[1], states[0][name][1])
        assert torch.equal(value[2], fresh[name][0])


def test_gradients_are_cut_between_windows(model):
    """Otherwise memory would grow with the length of the stream: this is what truncates backpropagation."""
    lanes = LaneStates(model, "cpu")
    state = {name: value.requires_grad_() for name, value in states_of(model, [0], 0).items()}
    lanes.put(np.array([0]), state)

    assert not any(value.requires_grad for value in lanes.take(np.array([0])).values())


def test_without_lanes_a_checkpoint_holds_nothing(model):
    """Buckets carry no state from batch to batch."""
    states = LaneStates(model, "cpu")
    states.load([states.tensors()])

    assert states.tensors() == {}
