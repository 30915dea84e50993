"""minGRU and minLSTM (Feng et al. 2024, arXiv 2410.01201): gates see the input alone, so that training is parallel.

Both are `h(t) = a(t) h(t-1) + b(t)` with 0 <= a <= 1. The scan doubles its reach at each pass and multiplies only such
factors, so it stays exact without the logarithms (and the positive states) of the paper's version.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from recurra.models.cells import Cell, chrono_bias
from recurra.models.config import ModelConfig
from recurra.models.core import mask_of
from recurra.models.state import State
from recurra.models.window import Window


class MinimalCell(Cell):
    """Base of the two cells."""

    gates: ClassVar[int]

    def __init__(self, input_size: int, config: ModelConfig) -> None:
        size = config.hidden_size
        super().__init__(input_size, {"h": size}, learned_start=config.learned_initial_state)
        self.weight = nn.Parameter(torch.empty(self.gates * size, input_size))
        self.bias = nn.Parameter(torch.zeros(self.gates * size))
        for gate in range(self.gates):
            nn.init.xavier_uniform_(self.weight.detach()[gate * size : (gate + 1) * size])
        if config.chrono_steps is not None:
            self.remember(chrono_bias(size, config.chrono_steps))

    @abstractmethod
    def remember(self, bias_H: Tensor) -> None:
        """Start the biases such that the odds of keeping a unit are exp(bias)."""

    @abstractmethod
    def factors(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """`a` and `b` of each step, [..., H]."""

    def forward(self, x_BTD: Tensor, state: State, window: Window) -> tuple[Tensor, State]:
        batch, steps = x_BTD.shape[:2]
        if steps == 0:
            return x_BTD.new_zeros(batch, 0, self.output_size), state
        a_BTH, b_BTH = self.factors(x_BTD)
        if window.lengths_B is not None:
            padding_BT1 = ~mask_of(window.lengths_B, steps, x_BTD.device)[:, :, None]
            a_BTH, b_BTH = a_BTH.masked_fill(padding_BT1, 1), b_BTH.masked_fill(padding_BT1, 0)
        first_B1H = state["h"].to(a_BTH.dtype)[:, None]
        if window.reset_BT is not None:
            starts_BT1 = self._starts(window, x_BTD.device)[:, :, None]
            start_B1H = self.start_state(batch, x_BTD.device)["h"].to(a_BTH.dtype)[:, None]
            b_BTH = b_BTH + a_BTH * start_B1H * starts_BT1
            a_BTH = a_BTH.masked_fill(starts_BT1, 0)
        b_BTH = torch.cat([b_BTH[:, :1] + a_BTH[:, :1] * first_B1H, b_BTH[:, 1:]], 1)
        h_BTH = scan(a_BTH, b_BTH)
        return h_BTH, {"h": h_BTH[:, -1]}

    def step(self, x_BD: Tensor, state: State) -> State:
        a_BH, b_BH = self.factors(x_BD)
        return {"h": torch.addcmul(b_BH, a_BH, state["h"])}

    def _project(self, x: Tensor) -> Tensor:
        """In the dtype of the weights also under autocast: a long product of bfloat16 factors is worth nothing."""
        return functional.linear(x, self.weight, self.bias).to(self.weight.dtype)

    def _starts(self, window: Window, device: torch.device) -> Tensor:
        assert window.reset_BT is not None
        starts_BT = window.reset_BT.to(device)
        return starts_BT if window.lengths_B is None else starts_BT & mask_of(window.lengths_B, window.steps, device)


class MinGruCell(MinimalCell):
    """z = sigmoid(W x), h(t) = (1 - z) h(t-1) + z V x."""

    gates = 2

    def remember(self, bias_H: Tensor) -> None:
        self.bias.detach()[: len(bias_H)] = -bias_H

    def factors(self, x: Tensor) -> tuple[Tensor, Tensor]:
        update, proposed = self._project(x).chunk(2, -1)
        return (-update).sigmoid(), update.sigmoid() * proposed


class MinLstmCell(MinimalCell):
    """f = sigmoid(W x), i = sigmoid(U x), h(t) = (f h(t-1) + i V x) / (f + i)."""

    gates = 3

    def remember(self, bias_H: Tensor) -> None:
        size = len(bias_H)
        self.bias.detach()[:size] = bias_H
        self.bias.detach()[size : 2 * size] = -bias_H

    def factors(self, x: Tensor) -> tuple[Tensor, Tensor]:
        forget, entry, proposed = self._project(x).chunk(3, -1)
        # log(f / i); the quotient itself is 0 / 0 where both gates are closed.
        odds = functional.softplus(-entry) - functional.softplus(-forget)
        return odds.sigmoid(), (-odds).sigmoid() * proposed


def scan(a_BTH: Tensor, b_BTH: Tensor) -> Tensor:
    """h(t) = a(t) h(t-1) + b(t) from h = 0, in log2(T) passes over everything (Hillis and Steele 1986)."""
    reach = 1
    while reach < a_BTH.shape[1]:
        b_BTH = torch.cat([b_BTH[:, :reach], torch.addcmul(b_BTH[:, reach:], a_BTH[:, reach:], b_BTH[:, :-reach])], 1)
        a_BTH = torch.cat([a_BTH[:, :reach], a_BTH[:, reach:] * a_BTH[:, :-reach]], 1)
        reach *= 2
    return b_BTH
