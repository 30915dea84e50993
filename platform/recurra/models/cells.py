"""One recurrent layer in one direction, on torch's own kernels: Elman, GRU and LSTM.

Weights have torch.nn's names and layout, so they can be exchanged with it. Sequences run on torch's kernels, or natively
where that is faster (on a CPU: Elman and GRU layers, whose steps torch calls one by one; LSTM layers in training); one step
runs on cell functions, because torch's LSTM kernel packs its weights anew at every call (10 times slower for one step).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager, nullcontext
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from recurra.models.backend import backend
from recurra.models.config import ModelConfig
from recurra.models.core import last_real
from recurra.models.native import recurrent
from recurra.models.native.library import available
from recurra.models.state import State, where_rows
from recurra.models.window import Window

SMALL_BATCH = 8
"""Fewer rows run natively whatever the number of threads, of which the native kernels use one."""
SATURATED = 1e4
"""Pre-activation whose sigmoid is exactly 1, and exactly 0 when negative, in every float type."""


class Cell(nn.Module, ABC):
    """Base of all cells; `h` of the state is the output.

    Args:
        input_size: Features of one step (D).
        sizes: Units of each tensor of the state, by name.
        learned_start: Whether sequences start from learned values instead of zeros.
    """

    def __init__(self, input_size: int, sizes: dict[str, int], *, learned_start: bool) -> None:
        super().__init__()
        self.input_size = input_size
        self.sizes = sizes
        self.start = nn.ParameterDict(
            {name: nn.Parameter(torch.zeros(size)) for name, size in sizes.items()} if learned_start else {}
        )

    @property
    def output_size(self) -> int:
        return self.sizes["h"]

    def start_state(self, batch: int, device: torch.device | str) -> State:
        """What every sequence starts from, in memory of its own."""
        if self.start:
            return {name: self.start[name].to(device).repeat(batch, 1) for name in self.sizes}
        dtype = next(self.parameters()).dtype
        return {name: torch.zeros(batch, size, dtype=dtype, device=device) for name, size in self.sizes.items()}

    @abstractmethod
    def forward(self, x_BTD: Tensor, state: State, window: Window) -> tuple[Tensor, State]:
        """Outputs [B, T, h], arbitrary in padding, and the state after each row's last real step."""

    @abstractmethod
    def step(self, x_BD: Tensor, state: State) -> State:
        """The state after one step, with nothing dropped."""


class GatedCell(Cell):
    """Base of the cells with an input and a recurrent matrix.

    Args:
        input_size: Features of one step (D).
        config: Sizes, start and weight drop.
        sizes: As for `Cell`.
    """

    gates: ClassVar[int]
    zoneout = 0.0

    def __init__(self, input_size: int, config: ModelConfig, sizes: dict[str, int]) -> None:
        super().__init__(input_size, sizes, learned_start=config.learned_initial_state)
        self.hidden_size = config.hidden_size
        self.weight_drop = config.regularisation.weight_drop
        rows = self.gates * self.hidden_size
        self.weight_ih = nn.Parameter(torch.empty(rows, input_size))
        self.weight_hh = nn.Parameter(torch.empty(rows, sizes["h"]))
        self.bias_ih = nn.Parameter(torch.zeros(rows))
        self.bias_hh = nn.Parameter(torch.zeros(rows))
        for gate in range(self.gates):
            nn.init.xavier_uniform_(self.block(self.weight_ih, gate))
            start = nn.init.orthogonal_ if config.recurrent_start == "orthogonal" else nn.init.xavier_uniform_
            start(self.block(self.weight_hh, gate))

    def block(self, parameter: Tensor, gate: int) -> Tensor:
        """The rows of one gate, to initialise."""
        return parameter.detach()[gate * self.hidden_size : (gate + 1) * self.hidden_size]

    def forward(self, x_BTD: Tensor, state: State, window: Window) -> tuple[Tensor, State]:
        """As `Cell.forward`; one weight-drop mask holds for the whole window."""
        weights = self.weights(dropped=self.training)
        outputs = []
        for segment in window.segments:
            if segment.reset_B is not None:
                start = self.start_state(x_BTD.shape[0], x_BTD.device)
                state = where_rows(segment.reset_B.to(x_BTD.device), start, state)
            x = x_BTD[:, segment.begin : segment.end]
            if segment.end > segment.begin:
                y, state = self._sequence(x, state, segment.lengths_B, weights)
            else:
                y = x_BTD.new_zeros(x_BTD.shape[0], 0, self.output_size)
            outputs.append(y)
        return (outputs[0] if len(outputs) == 1 else torch.cat(outputs, 1)), state

    def step(self, x_BD: Tensor, state: State) -> State:
        return self._advance(x_BD, state, self.weights(dropped=False))

    def weights(self, *, dropped: bool) -> list[Tensor]:
        """Input and recurrent matrix and their biases, in torch's order; recurrent weights dropped if asked."""
        weight_hh: Tensor = self.weight_hh
        if dropped and self.weight_drop:
            weight_hh = functional.dropout(weight_hh, self.weight_drop)
        return [self.weight_ih, weight_hh, self.bias_ih, self.bias_hh]

    @property
    @abstractmethod
    def kind(self) -> str | None:
        """The kernel's word for the cell, one of `recurrent.KINDS`; None where the kernel lacks an option of it."""

    def cell_weights(self, weights: list[Tensor]) -> recurrent.CellWeights:
        """What the kernel adds to, or does with, the product of the last output."""
        return recurrent.CellWeights(weights[3])

    def input_norm(self) -> tuple[Tensor, Tensor | None]:
        """What the product with the inputs is shifted by, and the gain of its normalisation where it has one."""
        return self.bias_ih, None

    def runs_native(self, x: Tensor) -> bool:
        """Whether the native kernels can take such inputs."""
        return backend() != "eager" and available(x.device, self.weight_hh.dtype)

    def _pays(self, x: Tensor, threads: int) -> bool:
        """Whether a native window is faster than torch's kernel, which shares a batch among `threads` threads or more."""
        few = x.shape[0] < SMALL_BATCH or torch.get_num_threads() <= threads
        return few and self.runs_native(x) and not torch.is_autocast_enabled(x.device.type)

    @abstractmethod
    def _sequence(
        self, x_BTD: Tensor, state: State, lengths_B: Tensor | None, weights: list[Tensor]
    ) -> tuple[Tensor, State]:
        """At least one step without resets."""

    @abstractmethod
    def _advance(self, x_BD: Tensor, state: State, weights: list[Tensor]) -> State:
        """One step."""

    def _project_and_run(
        self, x_BTD: Tensor, state: State, lengths_B: Tensor | None, weights: list[Tensor]
    ) -> tuple[Tensor, State]:
        projected_TBG = functional.linear(x_BTD.transpose(0, 1), weights[0], weights[2])
        return self._run_native(projected_TBG, state, weights, lengths_B, {})

    def _run_native(
        self,
        projected_TBG: Tensor,
        state: State,
        weights: list[Tensor],
        lengths_B: Tensor | None,
        kept: State,
    ) -> tuple[Tensor, State]:
        """A segment in the weights' own type, from the inputs' share of the pre-activations."""
        assert self.kind is not None
        kind, dtype = recurrent.KINDS[self.kind], self.weight_hh.dtype
        start = (state["h"].to(dtype), state["c"].to(dtype) if "c" in state else None)
        lengths_B = None if lengths_B is None else lengths_B.cpu().contiguous()
        rows = recurrent.Rows(lengths_B, kept.get("h"), kept.get("c"))
        with torch.autocast("cpu", enabled=False):
            layer = recurrent.Layer(kind, self.zoneout, weights[1], self.cell_weights(weights))
            y_TBH, *after = recurrent.run(layer, projected_TBG.to(dtype), start, rows)
        return y_TBH.transpose(0, 1), dict(zip(self.sizes, after, strict=True))

    def _single(
        self, x_B1D: Tensor, state: State, lengths_B: Tensor | None, weights: list[Tensor]
    ) -> tuple[Tensor, State]:
        """A segment of one step, without the cost of a sequence kernel."""
        following = self._advance(x_B1D[:, 0], state, weights)
        if lengths_B is not None:
            following = where_rows(lengths_B.to(x_B1D.device) > 0, following, state)
        return following["h"][:, None], following


class ElmanCell(GatedCell):
    """`h = f(W x + U h + b)` with f = tanh, or relu when `model.nonlinearity` says so."""

    gates = 1

    def __init__(self, input_size: int, config: ModelConfig) -> None:
        super().__init__(input_size, config, {"h": config.hidden_size})
        self.relu = config.nonlinearity == "relu"

    @property
    def kind(self) -> str:
        return "relu" if self.relu else "tanh"

    def _sequence(
        self, x_BTD: Tensor, state: State, lengths_B: Tensor | None, weights: list[Tensor]
    ) -> tuple[Tensor, State]:
        if x_BTD.shape[1] == 1:
            return self._single(x_BTD, state, lengths_B, weights)
        if self._pays(x_BTD, threads=2):
            return self._project_and_run(x_BTD, state, lengths_B, weights)
        run = torch.rnn_relu if self.relu else torch.rnn_tanh
        y_BTH, h_1BH = run(x_BTD, state["h"][None].contiguous(), weights, True, 1, 0.0, False, False, True)
        return y_BTH, {"h": h_1BH[0] if lengths_B is None else last_real(y_BTH, lengths_B, state["h"])}

    def _advance(self, x_BD: Tensor, state: State, weights: list[Tensor]) -> State:
        run = torch.rnn_relu_cell if self.relu else torch.rnn_tanh_cell
        return {"h": run(x_BD, state["h"], *weights)}


class GruCell(GatedCell):
    """Cho et al. 2014 (arXiv 1406.1078), with the reset gate after the recurrent product, as cuDNN has it."""

    gates = 3
    kind = "gru"

    def __init__(self, input_size: int, config: ModelConfig) -> None:
        super().__init__(input_size, config, {"h": config.hidden_size})
        if config.chrono_steps is not None:
            self.block(self.bias_ih, 1).copy_(chrono_bias(self.hidden_size, config.chrono_steps))

    def _sequence(
        self, x_BTD: Tensor, state: State, lengths_B: Tensor | None, weights: list[Tensor]
    ) -> tuple[Tensor, State]:
        if x_BTD.shape[1] == 1:
            return self._single(x_BTD, state, lengths_B, weights)
        if self._pays(x_BTD, threads=2):
            return self._project_and_run(x_BTD, state, lengths_B, weights)
        y_BTH, h_1BH = torch.gru(x_BTD, state["h"][None].contiguous(), weights, True, 1, 0.0, False, False, True)
        return y_BTH, {"h": h_1BH[0] if lengths_B is None else last_real(y_BTH, lengths_B, state["h"])}

    def _advance(self, x_BD: Tensor, state: State, weights: list[Tensor]) -> State:
        return {"h": torch.gru_cell(x_BD, state["h"], *weights)}


class LstmCell(GatedCell):
    """Hochreiter and Schmidhuber 1997 with forget gates; their bias starts at 1 (Jozefowicz et al. 2015)."""

    gates = 4
    kind = "lstm"

    def __init__(self, input_size: int, config: ModelConfig) -> None:
        super().__init__(input_size, config, {"h": config.hidden_size, "c": config.hidden_size})
        start_lstm_biases(self, config)

    def _sequence(
        self, x_BTD: Tensor, state: State, lengths_B: Tensor | None, weights: list[Tensor]
    ) -> tuple[Tensor, State]:
        if x_BTD.shape[1] == 1:
            return self._single(x_BTD, state, lengths_B, weights)
        if torch.is_grad_enabled() and self._pays(x_BTD, threads=1):
            return self._project_and_run(x_BTD, state, lengths_B, weights)
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


def start_lstm_biases(cell: GatedCell, config: ModelConfig) -> None:
    """Forget gates open: at `forget_bias`, or so that units remember for 1 to `chrono_steps` steps."""
    if config.chrono_steps is None:
        cell.block(cell.bias_ih, 1).fill_(config.forget_bias)
        return
    bias = chrono_bias(cell.hidden_size, config.chrono_steps)
    cell.block(cell.bias_ih, 1).copy_(bias)
    cell.block(cell.bias_ih, 0).copy_(-bias)


def chrono_bias(size: int, steps: int) -> Tensor:
    """log(u) with u uniform in [1, steps - 1] (Tallec and Ollivier 2018, arXiv 1804.11188)."""
    return torch.empty(size).uniform_(1, max(steps - 1, 1 + 1e-6)).log()


def _precision(device: torch.device) -> AbstractContextManager[object]:
    """No mixed precision on a CPU without bfloat16 instructions: torch's LSTM kernel raises there."""
    if device.type != "cpu" or not torch.is_autocast_enabled("cpu"):
        return nullcontext()
    if torch.get_autocast_dtype("cpu") == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return nullcontext()
    return torch.autocast("cpu", enabled=False)
