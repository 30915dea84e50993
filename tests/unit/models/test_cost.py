import subprocess
import sys

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from recurra.models.backend import use_backend
from recurra.models.config import ModelConfig
from recurra.models.cost import cost_of
from recurra.models.sequence import ModelShape, SequenceModel

FEATURES = ModelShape(input="features", input_size=7, output_size=3, per_step=True)
TOKENS = ModelShape(input="tokens", input_size=7, output_size=7, per_step=True)
POOLED = ModelShape(input="features", input_size=7, output_size=3, per_step=False)


def cost(shape: ModelShape, **settings):
    return cost_of(SequenceModel(ModelConfig(hidden_size=12, **settings), shape))


@pytest.mark.parametrize(("cell", "gates"), [("rnn", 1), ("gru", 3), ("lstm", 4)])
def test_a_step_is_two_operations_for_each_weight(cell, gates):
    """By hand: gates of 12 x 7 for the inputs and of 12 x 12 for the last output, and a head of 3 x 12."""
    matrices = gates * (12 * 7 + 12 * 12) + 3 * 12

    found = cost(FEATURES, cell=cell)
    assert found.flops_per_step == 2 * matrices
    assert found.parameters == matrices + 2 * gates * 12 + 3
    assert found.state_bytes == 4 * 12 * (2 if cell == "lstm" else 1)


def test_an_embedding_is_looked_up_and_not_multiplied():
    """Tied, its weights count once as parameters, and as the product that the output layer is."""
    found = cost(TOKENS, cell="gru", tied_embeddings=True)

    assert found.flops_per_step == 2 * (3 * 2 * 12 * 12 + 7 * 12)
    assert found.parameters == 7 * 12 + 3 * 2 * 12 * 12 + 2 * 3 * 12 + 7


def test_a_model_that_cannot_step_is_counted_on_one_step():
    """Both directions work, and the output layer reads both."""
    found = cost(POOLED, cell="lstm", bidirectional=True)

    assert found.flops_per_step == 2 * (2 * 4 * (12 * 7 + 12 * 12) + 3 * 24)


def test_a_memory_is_part_of_the_state_and_of_the_work():
    """An NTM reads and writes all of its memory at each step: four times the rows cost more, on any backend."""
    small, large = (cost(FEATURES, cell="ntm", ntm={"memory_rows": rows, "memory_width": 5}) for rows in (8, 32))

    assert large.state_bytes - small.state_bytes == 4 * 24 * (5 + 2)
    assert large.flops_per_step > small.flops_per_step > 2 * 12 * (4 * 12 + 7)


@pytest.mark.parametrize(
    "settings",
    [
        {"cell": "rnn"},
        {"cell": "lstm", "layers": 2, "layer_norm": True},
        {"cell": "mingru"},
        {"cell": "gru", "bidirectional": True},
        {"cell": "ntm", "ntm": {"memory_rows": 8, "memory_width": 5}},
    ],
    ids=str,
)
def test_it_is_what_torchs_own_counter_counts(settings):
    """Of one step, or of one step long a sequence."""
    model = SequenceModel(ModelConfig(hidden_size=12, **settings), POOLED).eval()
    with use_backend("eager"), FlopCounterMode(display=False) as counter:
        if model.steppable:
            model.step(torch.zeros(1, 7), model.zero_state(1))
        else:
            model(torch.zeros(1, 1, 7))

    assert cost_of(model).flops_per_step == counter.get_total_flops() > 0


def test_counting_leaves_the_model_as_it_is():
    """It is counted in the middle of a run, too."""
    model = SequenceModel(ModelConfig(hidden_size=4), FEATURES).train()
    cost_of(model)
    assert model.training


COUNTED = """
import sys
from recurra.models.config import ModelConfig
from recurra.models.cost import cost_of
from recurra.models.sequence import ModelShape, SequenceModel
shape = ModelShape(input="features", input_size=7, output_size=3, per_step=True)
assert cost_of(SequenceModel(ModelConfig(), shape)).flops_per_step
sys.exit("torch._dynamo" in sys.modules)
"""


def test_counting_does_without_the_compiler():
    """Torch's own counter imports it for nothing, 2 s of CPU at the end of each run that publishes."""
    assert subprocess.run([sys.executable, "-c", COUNTED], check=False).returncode == 0
