"""How far back the gradient reaches."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from recurra.data.batch import Batch
from recurra.models.config import ModelConfig
from recurra.tasks.base import Task
from recurra.tasks.regression import RegressionConfig, RegressionTask
from recurra.training.reach import Reach, measure_reach
from recurra.training.work import train_here

from .conftest import MakeRun

TASK = RegressionTask(RegressionConfig(), 2)


def batch_of(lengths: list[int]) -> Batch:
    steps, rows = max(lengths), len(lengths)
    generator = np.random.default_rng(1)
    return Batch(
        columns={
            "values": generator.standard_normal((rows, steps, 2)).astype(np.float32),
            "target": generator.standard_normal(rows).astype(np.float32),
        },
        lengths=np.array(lengths),
        reset=np.zeros((rows, steps), bool),
        ids=np.arange(rows),
        weight=np.ones(rows, np.float32),
        lanes=None,
        epoch=0,
        step_in_epoch=0,
        global_tokens=sum(lengths),
        position={},
    )


def measure(lengths: list[int], **model: object) -> Reach:
    torch.manual_seed(0)
    built = TASK.build_model(ModelConfig.model_validate({"hidden_size": 5, **model}))
    found = measure_reach(TASK, built, batch_of(lengths))
    assert found is not None
    return found


def test_it_is_the_gradient_by_the_state_so_many_steps_before() -> None:
    """Worked out by the chain rule for a linear-in-its-range RNN: dL/dh_T times the product of the Jacobians."""
    torch.manual_seed(0)
    model = TASK.build_model(ModelConfig(cell="rnn", hidden_size=5))
    batch = batch_of([6])
    found = measure_reach(TASK, model, batch)
    assert found is not None

    cell = model.core.cells["0"]
    h_1H, states = torch.zeros(1, 5), []
    for x_1D in torch.from_numpy(batch.columns["values"]).unbind(1):
        h_1H = torch.tanh(x_1D @ cell.weight_ih.T + h_1H @ cell.weight_hh.T + cell.bias_ih + cell.bias_hh)
        states.append(h_1H[0].detach())
    answer = (states[-1] @ model.head.weight[0] + model.head.bias[0]).detach()
    error = float(answer) - float(batch.columns["target"][0])
    gradient_H = 2 * error * model.head.weight[0].detach()
    expected = [gradient_H.norm().item()]
    for state_H in reversed(states[1:]):
        gradient_H = cell.weight_hh.detach().T @ ((1 - state_H**2) * gradient_H)
        expected.append(gradient_H.norm().item())
    assert found.norms == pytest.approx(expected, rel=1e-4)
    assert found.of == "state" and found.rows == 1


@pytest.mark.parametrize(
    "model",
    [
        {"cell": "gru", "layers": 2},
        {"cell": "lstm", "layer_norm": True},
        {"cell": "minlstm"},
        {"cell": "ntm", "ntm": {"memory_rows": 4, "memory_width": 3}},
        {"cell": "gru", "attention": "additive"},
        {"cell": "lstm", "pooling": "mean"},
    ],
    ids=str,
)
def test_every_core_has_one(model: dict[str, object]) -> None:
    """The measurement knows a core's step and its state, and nothing else of it; each lag has its mean over rows."""
    found = measure([7, 4], **model)
    assert len(found.norms) == 7 and found.rows == 2 and found.of == "state"
    assert all(np.isfinite(found.norms)) and min(found.norms) > 0


def test_of_a_model_that_cannot_step_the_inputs_are_asked() -> None:
    """Both directions: what stands first is as near as what stands last."""
    found = measure([9], cell="lstm", bidirectional=True)
    assert found.of == "inputs" and len(found.norms) == 9 and min(found.norms) > 0


def test_a_plain_rnn_with_small_weights_forgets_and_an_open_gate_does_not() -> None:
    """The two ends of the scale: what the plot is there to tell apart."""
    torch.manual_seed(0)
    rnn = TASK.build_model(ModelConfig(cell="rnn", hidden_size=8))
    lstm = TASK.build_model(ModelConfig(cell="lstm", hidden_size=8, chrono_steps=400))
    with torch.no_grad():
        rnn.core.cells["0"].weight_hh.mul_(0.5)
    vanishing, kept = (measure_reach(TASK, model, batch_of([200])) for model in (rnn, lstm))
    assert vanishing is not None and kept is not None
    assert vanishing.half_life is not None and vanishing.half_life <= 2
    assert vanishing.norms[100] < 1e-20 < 1e-3 * kept.norms[0] < kept.norms[100]


def test_nothing_of_the_model_is_changed(make_run: MakeRun) -> None:
    """It is measured between the best checkpoint and its publication."""
    model = TASK.build_model(ModelConfig(cell="gru", hidden_size=4))
    before, core = {name: value.clone() for name, value in model.state_dict().items()}, model.core
    measure_reach(TASK, model, batch_of([5]))
    assert model.core is core and all(value.grad is None for value in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_rows_of_filler_alone_say_nothing() -> None:
    """A rank may get none but filler rows."""
    task: Task = TASK
    batch = batch_of([3])
    batch.lengths[:] = 0
    assert measure_reach(task, TASK.build_model(ModelConfig(cell="rnn", hidden_size=4)), batch) is None


def test_a_run_leaves_it_and_shows_it(make_run: MakeRun) -> None:
    """A language model in lanes, whose rows hold several sequences: the last counted step's own sequence is looked at."""
    run = make_run(train={"truncated_bptt": 12, "global_batch": {"sequences": 3}, "steps": 3})
    train_here(run)
    store = run.open_store()
    kept = json.loads(store.read("reach.json"))
    assert kept["of"] == "state" and 1 < len(kept["norms"]) <= 12 and kept["norms"][0] > 0
    page = store.read("report.html").decode()
    assert "Gradient reach" in page and "steps back, k" in page
