"""Fully sharded data parallelism (FSDP): each rank holds its rows of every weight, and all rows only during an update:
those of embedding and output layer (`Model.apart`) in turn, all others together.

Gradients, moments and average follow the rows, so that a large embedding costs each of n ranks 1/n of all of them.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from recurra.models.embedding import TokenEmbedding
from recurra.models.sequence import Model
from recurra.models.state import State
from recurra.tasks.base import Task, TaskTensors
from recurra.training.ranks import Ranks


@dataclass(frozen=True)
class Rows:
    """What a rank holds of one weight."""

    shape: torch.Size
    """Of the whole weight."""
    start: int
    stop: int

    def of(self, whole: Tensor) -> Tensor:
        """The rows of a tensor of that shape."""
        return whole[self.start : self.stop]


class _Learner(nn.Module):
    """What is trained as one module: a task may call the model in ways of its own, which the hooks must see."""

    def __init__(self, task: Task, model: Model) -> None:
        super().__init__()
        self.model = model
        self._task = task

    def forward(self, tensors: TaskTensors, state: State | None) -> tuple[Tensor, State]:
        return self._task.forward(self.model, tensors, state)


class Shards:
    """Spreads the weights of `model` over the ranks, and gathers them when they are needed.

    Outside `gather` and the backward pass behind it the model's parameters are this rank's rows, and it cannot compute.

    Args:
        task: Calls the model.
        model: Whole, on its device, the same on all ranks.
        ranks: At least two; torch's process group.
    """

    def __init__(self, task: Task, model: Model, ranks: Ranks) -> None:
        # Not imported above: it takes 2.4 s of CPU and 50 MB in every worker.
        fsdp = importlib.import_module("torch.distributed.fsdp")
        meshes = importlib.import_module("torch.distributed.device_mesh")
        self._task = task
        self._model = model
        self._ranks = ranks
        shapes = {name: value.shape for name, value in model.named_parameters()}
        mesh = meshes.init_device_mesh(next(model.parameters()).device.type, (ranks.size,))
        parts: list[Any] = []
        for module in model.apart:
            last = module is model.apart[-1]  # its gradient is computed right behind its call
            part = fsdp.fully_shard(module, mesh=mesh, reshard_after_forward=not last)
            # Nothing new: by itself torch would gather the part before while this one's gradient is computed.
            part.set_modules_to_backward_prefetch([part])
            part.set_unshard_in_backward(not isinstance(module, TokenEmbedding))  # whose gradient asks for tokens alone
            parts.append(part)
        self._learner = fsdp.fully_shard(_Learner(task, model), mesh=mesh, reshard_after_forward=False)
        # Weights that one rank's rows do not use are summed all the same: the others wait for it.
        self._learner.set_reduce_scatter_unused_params(True)
        for part in (self._learner, *parts):
            # Sums, as without shards: the divisor is the count of the global batch.
            part.set_gradient_divide_factor(1.0)
            part.set_force_sum_reduction_for_comms(True)
        self.weights = {name: _local(value).detach() for name, value in model.named_parameters()}
        """This rank's rows; what changes them changes the model."""
        self.rows = {name: _rows_of(shape, ranks) for name, shape in shapes.items()}

    def gather(self) -> None:
        """Have all rows of the weights until the end of the last part's backward pass; of `Model.apart` only in turn."""
        self._learner.unshard()
        self._learner.set_requires_gradient_sync(False)
        self._learner.set_reshard_after_backward(False, recurse=False)

    def expect_last(self) -> None:
        """The backward pass that comes next sums the gradients of all parts over the ranks, and lets the weights go."""
        self._learner.set_requires_gradient_sync(True)
        self._learner.set_reshard_after_backward(True, recurse=False)

    def forward(self, tensors: TaskTensors, state: State | None) -> tuple[Tensor, State]:
        """As `Task.forward`."""
        outputs: tuple[Tensor, State] = self._learner(tensors, state)
        return outputs

    def move_gradients(self, views: Mapping[str, Tensor]) -> None:
        """Put the summed gradients of this rank's rows into `views`."""
        for name, value in self._model.named_parameters():
            if name in views:
                views[name].copy_(_local(value.grad))
            value.grad = None

    @torch.no_grad()
    def whole_model(self, values: Mapping[str, Tensor]) -> Model:
        """A model of its own, with all rows of `values`; all ranks call it."""
        model = self._task.build_model(self._model.config).to(next(self._model.parameters()).device)
        for name, parameter in model.named_parameters():
            parameter.zero_()
            self.rows[name].of(parameter).copy_(values[name])
            self._ranks.sum_in_place(parameter.detach())
        for name, buffer in model.named_buffers():
            buffer.copy_(self._model.get_buffer(name))
        return model


def _local(rows: Any) -> Tensor:
    """This rank's rows of a DTensor; they share its storage."""
    local: Tensor = rows.to_local()
    return local


def _rows_of(shape: torch.Size, ranks: Ranks) -> Rows:
    """As torch.chunk cuts: equal parts, the last ones shorter or empty."""
    each = -(-shape[0] // ranks.size)
    return Rows(shape, min(ranks.rank * each, shape[0]), min((ranks.rank + 1) * each, shape[0]))
