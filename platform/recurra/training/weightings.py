"""What the heads of a Neural Turing Machine did on one sequence, for the report (figures 6 and 12 of arXiv 1410.5401)."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from recurra.data.batch import Batch
from recurra.models.sequence import Model, SequenceModel
from recurra.tasks.base import Task

_MOST_STEPS = 256
"""Steps of the picture; more would be thinner than a pixel."""
_MOST_BATCHES = 8


@torch.no_grad()
def trace_heads(task: Task, model: Model, batches: Iterable[Batch]) -> dict[str, Any] | None:
    """The longest of the first sequences and what each head did, as JSON; None when the model has no heads.

    `inputs` [T][D] (absent for tokens), `outputs` [T][K] probabilities, `targets` [T][K] where the task judges bits,
    `adds` and `reads` [T][heads * M], and `heads`: name and `weights` [T][N] of each.
    """
    if not isinstance(model, SequenceModel) or model.config.cell != "ntm":
        return None
    model.eval()
    device = str(next(model.parameters()).device)
    chosen, row = _longest(batches)
    if chosen is None:
        return None
    tensors = task.tensors(chosen).to(device)
    steps = min(int(tensors.lengths[row]), _MOST_STEPS)
    inputs = tensors.inputs[row : row + 1, :steps]
    trace = model.trace(inputs)
    found: dict[str, Any] = {"heads": _heads(trace.weightings)}
    if inputs.dim() == 3:
        found["inputs"] = _rounded(inputs[0])
    if "bits" in tensors.targets:
        counted_T = tensors.targets["counted"][row, :steps]
        found["outputs"] = _rounded(trace.outputs[0].sigmoid() * counted_T[:, None])
        found["targets"] = _rounded(tensors.targets["bits"][row, :steps])
    found["adds"] = _rounded(trace.weightings["add"][0].flatten(1))
    found["reads"] = _rounded(trace.weightings["reads"][0].flatten(1))
    return found


def _longest(batches: Iterable[Batch]) -> tuple[Batch | None, int]:
    """The batch with the longest row among the first ones, and that row."""
    best, row, steps = None, 0, 0
    for batch in islice(batches, _MOST_BATCHES):
        place = int(batch.lengths.argmax())
        if batch.lengths[place] > steps:
            best, row, steps = batch, place, int(batch.lengths[place])
    return best, row


def _heads(weightings: dict[str, Tensor]) -> list[dict[str, Any]]:
    heads = []
    for kind in ("write", "read"):
        for number, weights_TN in enumerate(weightings[f"{kind}_weights"][0].unbind(1), 1):
            heads.append({"kind": kind, "number": number, "weights": _rounded(weights_TN)})
    return heads


def _rounded(values: Tensor) -> list[list[float]]:
    """Three digits are more than one sees."""
    rows: list[list[float]] = (values.double().cpu() * 1000).round().div(1000).tolist()
    return rows
