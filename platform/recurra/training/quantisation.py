"""What steps with 8-bit matrices lose and gain, measured on held-out data before a model is published."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from recurra.data.batch import Batch
from recurra.models.native.stepping import Precision
from recurra.models.sequence import Model
from recurra.models.state import State
from recurra.models.stepper import Stepper, build_stepper
from recurra.tasks.base import Loss, Task, TaskTensors

MOST_STEPS = 50_000
"""Time steps of held-out data that are read, in each precision."""
_ROUNDS, _TIMED_STEPS = 5, 200
_PRECISIONS: tuple[Precision, ...] = ("float32", "int8")


def measure_int8(task: Task, model: Model, batches: Iterable[Batch]) -> dict[str, Any]:
    """Read the same held-out data step by step in float32 and with 8-bit matrices.

    Args:
        task: Gives loss and metrics.
        model: As it is published.
        batches: Of the evaluation data; the first `MOST_STEPS` steps are read, each row from an empty state.

    Returns:
        `steps`, and for `float32` and `int8` each the metrics, and `step_us`, microseconds of one sequence's step on one
        thread of this machine; `speedup`, of the two.

    Raises:
        ConfigError: The model has no steps with 8-bit matrices.
    """
    own = copy.deepcopy(model).cpu().eval()
    chosen: list[Batch] = []
    steps = 0
    for batch in batches:
        chosen.append(batch)
        steps += int(batch.lengths.sum())
        if steps >= MOST_STEPS:
            break
    found: dict[str, Any] = {
        precision: {"metrics": _metrics(task, own, precision, [task.tensors(batch) for batch in chosen])}
        for precision in _PRECISIONS
    }
    for precision, microseconds in _times(own, task.tensors(chosen[0])).items():
        found[precision]["step_us"] = round(microseconds, 2)
    return {"steps": steps, **found, "speedup": round(found["float32"]["step_us"] / found["int8"]["step_us"], 2)}


@torch.no_grad()
def _metrics(task: Task, model: Model, precision: Precision, batches: list[TaskTensors]) -> dict[str, float]:
    sums: dict[str, float] = {}
    for tensors in batches:
        loss: Loss = task.loss(_read(model, precision, tensors), tensors)
        for name, value in {"": loss.total, "#": loss.count, **loss.sums}.items():
            sums[name] = sums.get(name, 0.0) + float(value)
    total, count = sums.pop(""), sums.pop("#")
    return task.metrics(total, count, sums)


def _read(model: Model, precision: Precision, tensors: TaskTensors) -> Tensor:
    """Outputs [B, T, K], or [B, K] of each row's last step, by single steps."""
    rows, steps = tensors.inputs.shape[:2]
    state = _empty(model, rows)
    stepper = build_stepper(model, state, precision=precision)
    outputs = torch.zeros(rows, steps, model.shape.output_size)
    blank = _empty(model, rows)
    for t in range(steps):
        active = [row for row in range(rows) if t < int(tensors.lengths[row])]
        if tensors.reset is not None:
            for name, value in state.items():
                value[tensors.reset[:, t]] = blank[name][tensors.reset[:, t]]
        if active:
            outputs[active, t] = stepper.step(tensors.inputs[active, t], active)
    if model.shape.per_step:
        return outputs
    return outputs[torch.arange(rows), (tensors.lengths - 1).clamp(min=0)]


def _times(model: Model, tensors: TaskTensors) -> dict[str, float]:
    """Microseconds a step of one sequence: medians of alternating rounds."""
    steppers: dict[str, Stepper] = {
        precision: build_stepper(model, _empty(model, 1), precision=precision) for precision in _PRECISIONS
    }
    inputs_B = tensors.inputs[:1, 0]
    taken: dict[str, list[float]] = {precision: [] for precision in steppers}
    for _ in range(_ROUNDS):
        for precision, stepper in steppers.items():
            stepper.step(inputs_B, [0])
            begun_s = time.thread_time()
            for _ in range(_TIMED_STEPS):
                stepper.step(inputs_B, [0])
            taken[precision].append(1e6 * (time.thread_time() - begun_s) / _TIMED_STEPS)
    return {precision: statistics.median(values) for precision, values in taken.items()}


def _empty(model: Model, rows: int) -> State:
    with torch.no_grad():
        return {name: value.clone().contiguous() for name, value in model.zero_state(rows).items()}
