"""Everything of an update that is the same on all ranks, as named tensors, and back."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from recurra.errors import TrainingError
from recurra.training.step import TrainStep


def take_snapshot(update: TrainStep) -> dict[str, Tensor]:
    """Weights, buffers, optimizer state and average, by name; views, not copies."""
    named = dict(update.model.named_parameters())
    tensors = {f"weight.{name}": value.detach() for name, value in named.items()}
    tensors |= {f"buffer.{name}": value for name, value in update.model.named_buffers()}
    for name, parameter in named.items():
        for key, value in update.optimizer.state.get(parameter, {}).items():
            if isinstance(value, Tensor):
                tensors[f"optimizer.{key}.{name}"] = value
    if update.average is not None:
        tensors |= {f"average.{name}": value for name, value in update.average.values.items()}
    return tensors


@torch.no_grad()
def put_snapshot(update: TrainStep, tensors: dict[str, Tensor]) -> None:
    """Take over what `take_snapshot` gave.

    Raises:
        TrainingError: The tensors are those of another model or of another `train.ema`.
    """
    named = dict(update.model.named_parameters())
    _copy("weight", named, tensors)
    _copy("buffer", dict(update.model.named_buffers()), tensors)
    if update.average is not None:
        _copy("average", update.average.values, tensors)
    fused = bool(update.optimizer.defaults.get("fused"))
    for full_name, value in tensors.items():
        if full_name.startswith("optimizer."):
            _, key, name = full_name.split(".", 2)
            # torch keeps the count of updates on the CPU unless the kernel itself reads it.
            device = named[name].device if key != "step" or fused else torch.device("cpu")
            update.optimizer.state[named[name]][key] = value.to(device, copy=True)


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
