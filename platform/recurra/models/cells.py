"""One recurrent layer in one direction: Elman, GRU and LSTM.

Weights have torch.nn's names and layout, so they can be exchanged with it. Sequences run on torch's kernels; one step
runs on cell functions, because torch's LSTM kernel packs its weights anew at every call (10 times slower for one step).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from recurra.models.config import ModelConfig
from recurra.models.core import Segment, last_real
from recurra.models.state import State, where_rows

SATURATED = 1e4
"""Pre-activation whose sigmoid is exactly 1, and exactly 0 when negative, in every float type."""


class Cell(nn.Module, ABC):
    """Base of the cells; `h` of the state is the output.

    Args:
        input_size: Features of one step (D).
        config: `hidden_size`, `learned_initial_state` and `regularisation.weight_drop` are used.
    """

    gates: ClassVar[int]
    names: ClassVar[tuple[str, ...]] = ("h",)

    def __init__(self, input_size: int, config: ModelConfig) -> None:
        super().__init__()
        self.input_size = input_size
        self.hidden_size = config.hidden_size
        self.weight_drop = config.regularisation.weight_drop
        rows = self.gates * self.hidden_size
        self.weight_ih = nn.Parameter(torch.empty(rows, input_size))
        self.weight_hh = nn.Parameter(torch.empty(rows, self.hidden_size))
        self.bias_ih = nn.Parameter(torch.zeros(rows))
        self.bias_hh = nn.Parameter(torch.zeros(rows))
        self.start = nn.ParameterDict(
            {name: nn.Parameter(torch.zeros(self.hidden_size)) for name in self.names}
            if config.learned_initial_state
            else {}
        )
        for gate in range(self.gates):
            block = slice(gate * self.hidden_size, (gate + 1) * self.hidden_size)
            nn.init.xavier_uniform_(self.weight_ih.data[block])
            nn.init.orthogonal_(self.weight_hh.data[block])  # Saxe et al. 2014, arXiv 1312.6120

    def start_state(self, batch: int, device: torch.device | str) -> State:
        if self.start:
            return {name: self.start[name].to(device).expand(batch, -1) for name in self.names}
        zeros = torch.zeros(batch, self.hidden_size, dtype=self.weight_hh.dtype, device=device)
        return dict.fromkeys(self.names, zeros)

    def forward(self, x_BTD: Tensor, state: State, segments: Sequence[Segment]) -> tuple[Tensor, State]:
        """Run over a cut window; outputs in padding are arbitrary. One weight-drop mask holds for the whole window."""
        weights = self._weights()
        outputs = []
        for segment in segments:
            if segment.reset_B is not None:
                start = self.start_state(x_BTD.shape[0], x_BTD.device)
                state = where_rows(segment.reset_B.to(x_BTD.device), start, state)
            x = x_BTD[:, segment.begin : segment.end]
            if segment.end - segment.begin == 1:
                y, state = self._single(x, state, segment.lengths_B, weights)
            elif segment.end > segment.begin:
                y, state = self._sequence(x, state, segment.lengths_B, weights)
            else:
                y = x_BTD.new_zeros(x_BTD.shape[0], 0, self.hidden_size)
            outputs.append(y)
        return (outputs[0] if len(outputs) == 1 else torch.cat(outputs, 1)), state

    def step(self, x_BD: Tensor, state: State) -> State:
        """The state after one step, without weight drop."""
        return self._advance(x_BD, state, [self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh])

    @abstractmethod
    def _sequence(
        self, x_BTD: Tensor, state: State, lengths_B: Tensor | None, weights: list[Tensor]
    ) -> tuple[Tensor, State]: ...

    @abstractmethod
    def _advance(self, x_BD: Tensor, state: State, weights: list[Tensor]) -> State: ...

    def _single(
        self, x_B1D: Tensor, state: State, lengths_B: Tensor | None, weights: list[Tensor]
    ) -> tuple[Tensor, State]:
        following = self._advance(x_B1D[:, 0], state, weights)
        if lengths_B is not None:
            following = where_rows(lengths_B.to(x_B1D.device) > 0, following, state)
        return following["h"][:, None], following

    def _weights(self) -> list[Tensor]:
        weight_hh = (
            functional.dropout(self.weight_hh, self.weight_drop, self.training) if self.weight_drop else self.weight_hh
        )
        return [self.weight_ih, weight_hh, self.bias_ih, self.bias_hh]


class ElmanCell(Cell):
    """`h = f(W x + U h + b)` with f = tanh, or relu when `model.nonlinearity` says so."""

    gates = 1

    def __init__(self, input_size: int, config: ModelConfig) -> None:
        super().__init__(input_size, config)
        self.relu = config.nonlinearity == "relu"

    def _sequence(
        self, x_BTD: Tensor, state: State, lengths_B: Tensor | None, weights: list[Tensor]
    ) -> tuple[Tensor, State]:
        run = torch.rnn_relu if self.relu else torch.rnn_tanh
        y_BTH, h_1BH = run(x_BTD, state["h"][None].contiguous(), weights, True, 1, 0.0, False, False, True)
        return y_BTH, {"h": h_1BH[0] if lengths_B is None else last_real(y_BTH, lengths_B, state["h"])}

    def _advance(self, x_BD: Tensor, state: State, weights: list[Tensor]) -> State:
        run = torch.rnn_relu_cell if self.relu else torch.rnn_tanh_cell
        return {"h": run(x_BD, state["h"], *weights)}


class GruCell(Cell):
    """Cho et al. 2014 (arXiv 1406.1078), with the reset gate after the recurrent product, as cuDNN has it."""

    gates = 3

    def _sequence(
        self, x_BTD: Tensor, state: State, lengths_B: Tensor | None, weights: list[Tensor]
    ) -> tuple[Tensor, State]:
        y_BTH, h_1BH = torch.gru(x_BTD, state["h"][None].contiguous(), weights, True, 1, 0.0, False, False, True)
        return y_BTH, {"h": h_1BH[0] if lengths_B is None else last_real(y_BTH, lengths_B, state["h"])}

    def _advance(self, x_BD: Tensor, state: State, weights: list[Tensor]) -> State:
        return {"h": torch.gru_cell(x_BD, state["h"], *weights)}


class LstmCell(Cell):
    """Hochreiter and Schmidhuber 1997 with forget gates; their bias starts at 1 (Jozefowicz et al. 2015)."""

    gates = 4
    names = ("h", "c")

    def __init__(self, input_size: int, config: ModelConfig) -> None:
        super().__init__(input_size, config)
        nn.init.ones_(self.bias_ih.data[self.hidden_size : 2 * self.hidden_size])

    def _sequence(
        self, x_BTD: Tensor, state: State, lengths_B: Tensor | None, weights: list[Tensor]
    ) -> tuple[Tensor, State]:
        start = (state["h"][None].contiguous(), state["c"][None].contiguous())
        if lengths_B is not None:
            x_BTD, weights = self._freeze_padding(x_BTD, lengths_B, weights)
        with _precision(x_BTD.device):
            y_BTH, h_1BH, c_1BH = torch.lstm(x_BTD, start, weights, True, 1, 0.0, False, False, True)
        h_BH = h_1BH[0] if lengths_B is None else last_real(y_BTH, lengths_B, state["h"])
        return y_BTH, {"h": h_BH, "c": c_1BH[0]}

    def _advance(self, x_BD: Tensor, state: State, weights: list[Tensor]) -> State:
        h_BH, c_BH = torch.lstm_cell(x_BD, (state["h"], state["c"]), *weights)
        return {"h": h_BH, "c": c_BH}

    def _freeze_padding(self, x_BTD: Tensor, lengths_B: Tensor, weights: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """One more input that is 1 in padding, where it holds the forget gate at 1 and the input gate at 0.

        So the kernel hands back the cell state of each row's last real step, which torch otherwise gives only for
        packed sequences (measured: 1.3 to 1.8 times slower in training).
        """
        steps = torch.arange(x_BTD.shape[1], device=x_BTD.device)
        padding_BT = (steps >= lengths_B.to(x_BTD.device)[:, None]).to(x_BTD.dtype)
        column = weights[0].new_tensor([-SATURATED, SATURATED, 0.0, 0.0]).repeat_interleave(self.hidden_size)
        wide = torch.cat([weights[0], column[:, None]], 1)
        return torch.cat([x_BTD, padding_BT[:, :, None]], 2), [wide, *weights[1:]]


def _precision(device: torch.device) -> AbstractContextManager[object]:
    """No mixed precision on a CPU without bfloat16 instructions: torch's LSTM kernel raises there."""
    if device.type != "cpu" or not torch.is_autocast_enabled("cpu"):
        return nullcontext()
    if torch.get_autocast_dtype("cpu") == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return nullcontext()
    return torch.autocast("cpu", enabled=False)
