"""Metrics of a model over a data set, the same at any number of ranks."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from recurra.data.batch import Batch
from recurra.models.sequence import Model
from recurra.tasks.base import Task
from recurra.training.lanes import LaneStates
from recurra.training.ranks import Ranks


@dataclass(frozen=True)
class Evaluation:
    """What one evaluation found."""

    metrics: dict[str, float]
    """Over the batches of all ranks."""
    samples: list[dict[str, Any]] = field(default_factory=list)
    """Sample outputs of this rank's first batch."""


@torch.no_grad()
def evaluate(
    task: Task,
    model: Model,
    batches: Iterable[Batch],
    ranks: Ranks,
    *,
    limit: int | None = None,
    tell: Callable[[int], None] = lambda batch: None,
) -> Evaluation:
    """Run the model over this rank's batches; all ranks take part.

    Args:
        task: Gives loss and metrics.
        model: Put into eval mode; states of lanes are carried from batch to batch.
        batches: One pass over the data.
        ranks: Sums are added up over them.
        limit: Batches to look at; None = all.
        tell: Called with the number of batches done, after each.
    """
    model.eval()
    device = str(next(model.parameters()).device)
    lanes = LaneStates(model, device)
    sums: dict[str, Tensor] = {}
    samples: list[dict[str, Any]] = []
    for done, batch in enumerate(islice(batches, limit), 1):
        tensors = task.tensors(batch).to(device)
        state = lanes.take(batch.lanes) if batch.lanes is not None else None
        outputs, end = task.forward(model, tensors, state)
        if batch.lanes is not None:
            lanes.put(batch.lanes, end)
        loss = task.loss(outputs, tensors)
        measured = task.measure(model, tensors, want_samples=done == 1)
        for name, value in {"": loss.total, "#": loss.count, **loss.sums, **measured.sums}.items():
            sums[name] = sums.get(name, torch.zeros((), dtype=torch.float64)) + value.double().cpu()
        if done == 1:
            samples = measured.samples or task.samples(outputs, tensors)
        tell(done)
    names = sorted(sums)
    values = torch.stack([sums[name] for name in names]).to(device)
    ranks.sum_in_place(values)
    summed = dict(zip(names, values.tolist(), strict=True))
    total, count = summed.pop(""), summed.pop("#")
    return Evaluation(task.metrics(total, count, summed), samples)
