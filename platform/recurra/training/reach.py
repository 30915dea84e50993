"""How far back the gradient reaches: |dL/ds_{t-k}| over k, with s the recurrent state and L the loss at step t.

Where it falls exponentially, what happened k steps ago cannot be learned from (Hochreiter 1991; Bengio, Simard, Frasconi
1994; Pascanu, Mikolov, Bengio 2013, arXiv 1211.5063, eq. 5); where it grows, the updates explode.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recurra.data.batch import Batch
from recurra.models.backend import use_backend
from recurra.models.core import Core, blank_padding
from recurra.models.sequence import SequenceModel
from recurra.models.state import State, StateSpec, where_rows
from recurra.tasks.base import Task, TaskTensors

MOST_ROWS = 8
MOST_STEPS = 512
"""Of a row, the first ones: a graph over single steps is held in memory."""


@dataclass(frozen=True)
class Reach:
    """The measurement."""

    of: str
    """`state`, or `inputs` for a model that cannot step, whose states nobody sees."""
    norms: list[float]
    """Mean over rows of the Euclidean norm of dL/ds_{t-k}, for k = 0, 1, ...; L is the row's own loss."""
    rows: int

    @property
    def half_life(self) -> int | None:
        """The first k at which less than half of the gradient at k = 0 is left; None = it never falls so far."""
        return next((k for k, norm in enumerate(self.norms) if norm < self.norms[0] / 2), None)

    def to_json(self) -> dict[str, Any]:
        return {"of": self.of, "norms": self.norms, "rows": self.rows, "half_life": self.half_life}


def measure_reach(task: Task, model: SequenceModel, batch: Batch) -> Reach | None:
    """Measure it on the first rows of a batch, without dropout; weights and their gradients stay as they are.

    Args:
        task: Its loss, at each row's last counted step alone where there is an output at every step.
        model: On any device.
        batch: Of evaluation data. States start anew, also in lanes.

    Returns:
        None when no row has a counted step.
    """
    device = str(next(model.parameters()).device)
    tensors, ends_B = _last_steps(_shorten(task.tensors(batch)))
    if not bool((ends_B >= 0).any()):
        return None
    tensors = tensors.to(device)
    core: _StateWatch | _InputWatch = _StateWatch(model.core) if model.core.steppable else _InputWatch(model.core)
    model.eval()
    # Kernels that fuse steps show no state between them.
    with torch.enable_grad(), use_backend("eager"), _in_place_of_the_core(model, core):
        outputs, _ = task.forward(model, tensors, None)
        total = task.loss(outputs.float(), tensors).total
        norms_BT = core.norms(total)
    return _by_lag(norms_BT.cpu().numpy(), ends_B.numpy(), core.of)


class _Watch(Core):
    """Computes what a core computes, and keeps what its gradient is asked for."""

    of: str

    def __init__(self, core: Core) -> None:
        super().__init__()
        self.core = core
        self.input_size = core.input_size
        self.output_size = core.output_size
        self.steppable = core.steppable

    @property
    def state_spec(self) -> StateSpec:
        return self.core.state_spec

    def zero_state(self, batch: int, device: torch.device | str = "cpu") -> State:
        return self.core.zero_state(batch, device)

    def step(self, x_BD: Tensor, state: State) -> tuple[Tensor, State]:
        return self.core.step(x_BD, state)


class _StateWatch(_Watch):
    """Step by step, which is what forward equals, so that each step's state is there."""

    of = "state"

    def __init__(self, core: Core) -> None:
        super().__init__(core)
        self._states: list[list[Tensor]] = []

    def forward(
        self,
        x_BTD: Tensor,
        state: State | None = None,
        lengths_B: Tensor | None = None,
        reset_BT: Tensor | None = None,
    ) -> tuple[Tensor, State]:
        batch, device = x_BTD.shape[0], x_BTD.device
        state = self.zero_state(batch, device) if state is None else state
        outputs = []
        for t, x_BD in enumerate(x_BTD.unbind(1)):
            if reset_BT is not None:
                state = where_rows(reset_BT[:, t], self.zero_state(batch, device), state)
            y_BH, after = self.core.step(x_BD, state)
            self._states.append([value for value in after.values() if value.requires_grad])
            outputs.append(y_BH)
            state = after if lengths_B is None else where_rows(lengths_B.to(device) > t, after, state)
        return blank_padding(torch.stack(outputs, 1), lengths_B), state

    def norms(self, total: Tensor) -> Tensor:
        """[B, T] norms of the gradient of `total` by each step's state."""
        flat = [value for values in self._states for value in values]
        found = iter(torch.autograd.grad(total, flat, allow_unused=True, materialize_grads=True))
        steps = [[next(found).flatten(1) for _ in values] for values in self._states]
        return torch.stack([torch.cat(gradients, 1).norm(dim=1) for gradients in steps], 1)


class _InputWatch(_Watch):
    """All steps at once; of a core that reads from both ends, the inputs are what every step can be asked for."""

    of = "inputs"

    def forward(
        self,
        x_BTD: Tensor,
        state: State | None = None,
        lengths_B: Tensor | None = None,
        reset_BT: Tensor | None = None,
    ) -> tuple[Tensor, State]:
        self._inputs = x_BTD if x_BTD.requires_grad else x_BTD.clone().requires_grad_()
        outputs: tuple[Tensor, State] = self.core(self._inputs, state, lengths_B, reset_BT)
        return outputs

    def norms(self, total: Tensor) -> Tensor:
        """[B, T] norms of the gradient of `total` by each step's inputs."""
        (gradient_BTD,) = torch.autograd.grad(total, self._inputs)
        norms_BT: Tensor = gradient_BTD.norm(dim=2)
        return norms_BT


@contextmanager
def _in_place_of_the_core(model: SequenceModel, core: Core) -> Iterator[None]:
    own = model.core
    model.core = core
    try:
        yield
    finally:
        model.core = own


def _shorten(tensors: TaskTensors) -> TaskTensors:
    """The first rows and steps; targets of shape [B, T, ...] are cut like the inputs."""
    steps = tensors.inputs.shape[1]

    def cut(value: Tensor) -> Tensor:
        value = value[:MOST_ROWS]
        return value[:, :MOST_STEPS] if value.dim() > 1 and value.shape[1] == steps else value

    return TaskTensors(
        inputs=cut(tensors.inputs),
        lengths=tensors.lengths[:MOST_ROWS].clamp(max=MOST_STEPS),
        reset=None if tensors.reset is None else cut(tensors.reset),
        targets={name: cut(value) for name, value in tensors.targets.items()},
    )


def _last_steps(tensors: TaskTensors) -> tuple[TaskTensors, Tensor]:
    """Targets of which only each row's last counted step counts, and that step [B]; -1 where there is none."""
    counted = tensors.targets.get("counted")
    if counted is None:
        return tensors, tensors.lengths - 1
    steps_T = torch.arange(counted.shape[1])
    any_BT = counted.bool().flatten(2).any(2) if counted.dim() > 2 else counted.bool()
    ends_B = torch.where(any_BT, steps_T, -1).amax(1)
    last_BT = steps_T == ends_B[:, None]
    last = counted.bool() & last_BT.reshape(*last_BT.shape, *[1] * (counted.dim() - 2))
    return replace(tensors, targets={**tensors.targets, "counted": last.to(counted.dtype)}), ends_B


def _by_lag(norms_BT: NDArray[np.float32], ends_B: NDArray[np.int64], of: str) -> Reach:
    """Means over the rows that reach back so far; k = 0 is each row's own last counted step."""
    real = ends_B >= 0
    lags: list[list[float]] = [[] for _ in range(int(ends_B.max()) + 1)]
    for norms_T, end in zip(norms_BT[real], ends_B[real], strict=True):
        for lag in range(int(end) + 1):
            lags[lag].append(float(norms_T[end - lag]))
    return Reach(of, [float(np.mean(values)) for values in lags], int(real.sum()))
