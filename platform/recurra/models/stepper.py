"""A model that steps in place: for streams whose state nobody else holds, where every microsecond counts."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from recurra.models.backend import backend
from recurra.models.native import ntm as native
from recurra.models.native.library import available
from recurra.models.ntm import KERNEL_ORDER, NtmCore
from recurra.models.sequence import SequenceModel
from recurra.models.state import State


class Stepper(ABC):
    """Holds the state of a fixed number of sequences. Not for several threads at once."""

    @property
    @abstractmethod
    def state(self) -> State:
        """The current state; read it before the next step, or copy it."""

    @abstractmethod
    def load(self, state: State) -> None:
        """Go on from a copy of this state."""

    @abstractmethod
    def step(self, inputs_B: Tensor) -> Tensor:
        """As `SequenceModel.step`, without gradients; the output [B, K] is overwritten by the next step.

        Raises:
            ModelError: The model cannot step.
        """


def build_stepper(model: SequenceModel, batch: int) -> Stepper:
    """The fastest stepper for the model in eval mode, at the start of `batch` sequences; weights are read at each step."""
    core = model.core
    plain = model.pooling is None and model.shape.input == "features" and isinstance(model.head, torch.nn.Linear)
    if isinstance(core, NtmCore) and plain and backend() != "eager":
        weight = core.heads.weight
        if weight.dtype == torch.float32 and available(weight.device, weight.dtype):
            return NtmStepper(model, batch)
    return PlainStepper(model, batch)


class PlainStepper(Stepper):
    """Steps any model by its own `step`."""

    def __init__(self, model: SequenceModel, batch: int) -> None:
        self._model = model
        self._state = model.zero_state(batch, next(model.parameters()).device)

    @property
    def state(self) -> State:
        return self._state

    def load(self, state: State) -> None:
        self._state = {name: value.clone() for name, value in state.items()}

    def step(self, inputs_B: Tensor) -> Tensor:
        with torch.inference_mode():
            outputs, self._state = self._model.step(inputs_B, self._state)
        return outputs


class NtmStepper(Stepper):
    """Two native calls a step, the machine and its output layer, on buffers that never move."""

    def __init__(self, model: SequenceModel, batch: int) -> None:
        assert isinstance(model.core, NtmCore) and isinstance(model.head, torch.nn.Linear)
        self._core, self._head = model.core, model.head
        with torch.no_grad():
            self._state = {n: v.detach().clone() for n, v in model.core.zero_state(batch).items()}
        self._kernel = native.StepInPlace(
            model.core.sizes, tuple(self._state.get(name) for name in KERNEL_ORDER), model.shape.output_size
        )

    @property
    def state(self) -> State:
        return {f"core.{name}": value for name, value in self._state.items()}

    def load(self, state: State) -> None:
        for name, value in self._state.items():
            value.copy_(state[f"core.{name}"])

    def step(self, inputs_B: Tensor) -> Tensor:
        head = self._head._parameters
        return self._kernel(inputs_B, self._core.kernel_weights(), head["weight"], head["bias"])
