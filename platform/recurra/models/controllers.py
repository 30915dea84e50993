"""Controllers of a Neural Turing Machine: one step of a network whose inputs are the features and the last reads.

The part that depends on the features alone is one product for all steps (`project`); the rest is one product a step.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from recurra.models.state import State


class Controller(nn.Module, ABC):
    """Base of the controllers.

    Args:
        input_size: Features of one step (D).
        reads_size: Numbers that the read heads return (R x M).
        hidden_size: Units (H).
        start: Weights start evenly within +-start / sqrt(inputs).
    """

    gates: ClassVar[int]
    names: ClassVar[tuple[str, ...]]
    """Its part of the state, [B, H] each."""

    def __init__(self, input_size: int, reads_size: int, hidden_size: int, start: float) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        recurrent = hidden_size if self.names else 0
        self.weight_x = nn.Parameter(torch.empty(self.gates * hidden_size, input_size))
        self.weight_rh = nn.Parameter(torch.empty(self.gates * hidden_size, reads_size + recurrent))
        """For the last reads, then for the last output."""
        self.bias = nn.Parameter(torch.zeros(self.gates * hidden_size))
        bound = start / (input_size + reads_size + hidden_size) ** 0.5
        nn.init.uniform_(self.weight_x, -bound, bound)
        nn.init.uniform_(self.weight_rh, -bound, bound)

    def project(self, x: Tensor) -> Tensor:
        """[..., D] to the features' share of the pre-activations, [..., G]."""
        return functional.linear(x, self.weight_x, self.bias)

    @abstractmethod
    def advance(self, projected_BG: Tensor, reads_BR: Tensor, state: State) -> tuple[Tensor, State]:
        """Output `h_BH` and the controller's next state."""


class FeedForwardController(Controller):
    """One tanh layer; keeps nothing of its own, so the reads are its only past."""

    gates = 1
    names = ()

    def advance(self, projected_BG: Tensor, reads_BR: Tensor, state: State) -> tuple[Tensor, State]:
        return torch.addmm(projected_BG, reads_BR, self.weight_rh.t()).tanh(), {}


class LstmController(Controller):
    """One LSTM layer; gates stand in torch's order (input, forget, cell, output)."""

    gates = 4
    names = ("h", "c")

    def advance(self, projected_BG: Tensor, reads_BR: Tensor, state: State) -> tuple[Tensor, State]:
        known = torch.cat([reads_BR, state["h"]], 1)
        gates_BG = torch.addmm(projected_BG, known, self.weight_rh.t())
        entry, forget, cell, out = gates_BG.chunk(4, 1)
        c_BH = torch.addcmul(forget.sigmoid() * state["c"], entry.sigmoid(), cell.tanh())
        h_BH = out.sigmoid() * c_BH.tanh()
        return h_BH, {"h": h_BH, "c": c_BH}


class GruController(Controller):
    """One GRU layer; gates stand in torch's order (reset, update, new)."""

    gates = 3
    names = ("h",)

    def advance(self, projected_BG: Tensor, reads_BR: Tensor, state: State) -> tuple[Tensor, State]:
        size, reads_size = self.hidden_size, reads_BR.shape[1]
        known_BG = torch.addmm(projected_BG, reads_BR, self.weight_rh[:, :reads_size].t())
        own_BG = functional.linear(state["h"], self.weight_rh[:, reads_size:])
        reset, update = (known_BG[:, : 2 * size] + own_BG[:, : 2 * size]).sigmoid().chunk(2, 1)
        proposed = torch.addcmul(known_BG[:, 2 * size :], reset, own_BG[:, 2 * size :]).tanh()
        h_BH = torch.lerp(proposed, state["h"], update)
        return h_BH, {"h": h_BH}


CONTROLLERS: dict[str, type[Controller]] = {
    "lstm": LstmController,
    "gru": GruController,
    "feed_forward": FeedForwardController,
}
