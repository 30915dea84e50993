"""What an update has learned, as named tensors, and back: the same on all ranks, or rows of it on each."""

from __future__ import annotations

import torch
from torch import Tensor

from recurra.errors import TrainingError
from recurra.training.sharding import Rows
from recurra.training.step import TrainStep


def take_snapshot(update: TrainStep) -> dict[str, Tensor]:
    """Weights, buffers, optimizer state and average that every rank has whole, by name; views, not copies."""
    return {name: value for name, value in _held(update).items() if _rows_of(update, name) is None}


def take_rows(update: TrainStep) -> dict[str, tuple[int, Tensor]]:
    """This rank's rows of what is spread over the ranks, each behind the number of the first; views, not copies."""
    found = {name: (_rows_of(update, name), value) for name, value in _held(update).items()}
    return {name: (rows.start, value) for name, (rows, value) in found.items() if rows and value.numel()}


@torch.no_grad()
def put_snapshot(update: TrainStep, tensors: dict[str, Tensor]) -> None:
    """Take over what `take_snapshot` gave, and what the `take_rows` of all ranks gave together.

    Raises:
        TrainingError: The tensors are those of another model, optimizer or `train.ema`.
    """
    held = _held(update)
    rows = {name: _rows_of(update, name) for name in held}
    kinds = ("weight.", "buffer.", "optimizer.", *(("average.",) if update.average is not None else ()))
    shapes = {name: tuple(value.shape) for name, value in tensors.items() if name.startswith(kinds)}
    wanted = {name: tuple(mine.shape if (mine := rows[name]) else value.shape) for name, value in held.items()}
    if shapes != wanted:
        name = next(
            name for kind in kinds for name in sorted({*shapes, *wanted}) if _differs(name, kind, shapes, wanted)
        )
        kind, _, of = name.partition(".")
        raise TrainingError(
            f"The run's checkpoint does not fit the job file: {kind} {of} is {shapes.get(name)} in the checkpoint and "
            f"{wanted.get(name)} now. Undo the change, or start under another name."
        )
    for name, value in held.items():
        mine = rows[name]
        value.copy_(mine.of(tensors[name]) if mine else tensors[name])


def _held(update: TrainStep) -> dict[str, Tensor]:
    """Everything that this rank has."""
    tensors = {f"weight.{name}": value.detach() for name, value in update.weights.items()}
    tensors |= {f"buffer.{name}": value for name, value in update.model.named_buffers()}
    tensors |= {f"optimizer.{name}": value for name, value in update.optimizer.tensors.items()}
    if update.average is not None:
        tensors |= {f"average.{name}": value for name, value in update.average.values.items()}
    return tensors


def _rows_of(update: TrainStep, name: str) -> Rows | None:
    """Which rows of a tensor this rank has; None = all."""
    if update.shards is None:
        return None
    kind, _, weight = name.partition(".")
    return update.shards.rows.get(weight.partition(".")[2] if kind == "optimizer" else weight)


def _differs(name: str, kind: str, shapes: dict[str, tuple[int, ...]], wanted: dict[str, tuple[int, ...]]) -> bool:
    return name.startswith(kind) and shapes.get(name) != wanted.get(name)
