"""Everything of an update that is the same on all ranks, as named tensors, and back."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from recurra.errors import TrainingError
from recurra.training.step import TrainStep


def take_snapshot(update: TrainStep) -> dict[str, Tensor]:
    """Weights, buffers, optimizer state and average, by name; views, not copies."""
    tensors = {f"weight.{name}": value.detach() for name, value in update.model.named_parameters()}
    tensors |= {f"buffer.{name}": value for name, value in update.model.named_buffers()}
    tensors |= {f"optimizer.{name}": value for name, value in update.optimizer.tensors.items()}
    if update.average is not None:
        tensors |= {f"average.{name}": value for name, value in update.average.values.items()}
    return tensors


@torch.no_grad()
def put_snapshot(update: TrainStep, tensors: dict[str, Tensor]) -> None:
    """Take over what `take_snapshot` gave.

    Raises:
        TrainingError: The tensors are those of another model, optimizer or `train.ema`.
    """
    _copy("weight", dict(update.model.named_parameters()), tensors)
    _copy("buffer", dict(update.model.named_buffers()), tensors)
    if update.average is not None:
        _copy("average", update.average.values, tensors)
    _copy("optimizer", update.optimizer.tensors, tensors)


def _copy(kind: str, into: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
    found = {name.partition(".")[2]: value for name, value in tensors.items() if name.startswith(f"{kind}.")}
    shapes = {name: tuple(value.shape) for name, value in found.items()}
    wanted = {name: tuple(value.shape) for name, value in into.items()}
    if shapes != wanted:
        differing = sorted(name for name in {*shapes, *wanted} if shapes.get(name) != wanted.get(name))
        raise TrainingError(
            f"The run's checkpoint does not fit the job file: {kind} {differing[0]} is {shapes.get(differing[0])} in the "
            f"checkpoint and {wanted.get(differing[0])} now. Undo the change, or start under another name."
        )
    for name, value in found.items():
        into[name].copy_(value)
