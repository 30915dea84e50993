"""Stacks of rnn, gru and lstm layers, in one or both directions."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from recurra.errors import ModelError
from recurra.models.cells import Cell, ElmanCell, GruCell, LstmCell
from recurra.models.config import ModelConfig
from recurra.models.core import Core, blank_padding
from recurra.models.dropout import TimeDropout
from recurra.models.looped import LoopedElmanCell, LoopedGruCell, LoopedLstmCell
from recurra.models.minimal import MinGruCell, MinLstmCell
from recurra.models.state import State, StateSpec, StateTensor
from recurra.models.window import Window


def build_cell(config: ModelConfig, input_size: int) -> Cell:
    """One layer in one direction: on torch's kernels where these have every option asked for, else step by step."""
    looped = config.layer_norm or config.peephole or bool(config.projection_size or config.regularisation.zoneout)
    match config.cell:
        case "rnn":
            return LoopedElmanCell(input_size, config) if looped else ElmanCell(input_size, config)
        case "gru":
            return LoopedGruCell(input_size, config) if looped else GruCell(input_size, config)
        case "lstm":
            return LoopedLstmCell(input_size, config) if looped else LstmCell(input_size, config)
        case "mingru":
            return MinGruCell(input_size, config)
        case "minlstm":
            return MinLstmCell(input_size, config)
        case "ntm":
            raise AssertionError("an NTM is a core of its own")


class RecurrentStack(Core):
    """`config.layers` layers; state names are `0.h`, `0.c`, `1.h`, ... or `0.forward.h`, `0.backward.h`, ..."""

    def __init__(self, config: ModelConfig, input_size: int) -> None:
        super().__init__()
        directions = ("forward", "backward") if config.bidirectional else ("",)
        self.input_size = input_size
        self.output_size = (config.projection_size or config.hidden_size) * len(directions)
        self.steppable = not config.bidirectional
        self.residual = config.residual
        self.cells = nn.ModuleDict()
        """Cells by the prefix of their state, dots written as underscores."""
        self.prefixes: list[list[str]] = []
        """For each layer the prefix of each direction."""
        for layer in range(config.layers):
            size = self.output_size if layer else input_size
            self.prefixes.append([f"{layer}.{direction}".rstrip(".") for direction in directions])
            for prefix in self.prefixes[-1]:
                self.cells[prefix.replace(".", "_")] = build_cell(config, size)
        regularisation = config.regularisation
        self.dropout = TimeDropout(regularisation.dropout, variational=regularisation.variational)

    @property
    def state_spec(self) -> StateSpec:
        return StateSpec(
            tuple(
                StateTensor(f"{prefix}.{name}", tuple(value.shape[1:]), str(value.dtype).removeprefix("torch."))
                for prefix in self._flat_prefixes()
                for name, value in self.cell(prefix).start_state(1, "cpu").items()
            )
        )

    def cell(self, prefix: str) -> Cell:
        """The cell whose state has this prefix."""
        cell = self.cells[prefix.replace(".", "_")]
        assert isinstance(cell, Cell)
        return cell

    def zero_state(self, batch: int, device: torch.device | str = "cpu") -> State:
        return {
            f"{prefix}.{name}": value
            for prefix in self._flat_prefixes()
            for name, value in self.cell(prefix).start_state(batch, device).items()
        }

    def forward(
        self,
        x_BTD: Tensor,
        state: State | None = None,
        lengths_B: Tensor | None = None,
        reset_BT: Tensor | None = None,
    ) -> tuple[Tensor, State]:
        batch, steps = x_BTD.shape[:2]
        state = self.zero_state(batch, x_BTD.device) if state is None else state
        window = Window(steps, lengths_B, reset_BT)
        x = blank_padding(x_BTD, lengths_B)
        following: State = {}
        for layer, prefixes in enumerate(self.prefixes):
            x = self.dropout(x) if layer else x
            outputs = []
            for prefix, backward in zip(prefixes, (False, True), strict=False):
                y, after = self._run(prefix, x, state, window, backward)
                outputs.append(y)
                following.update(
                    {f"{prefix}.{name}": value.to(state[f"{prefix}.{name}"].dtype) for name, value in after.items()}
                )
            y = outputs[0] if len(outputs) == 1 else torch.cat(outputs, 2)
            x = x + y if self.residual and layer else y
        return blank_padding(self.dropout(x), lengths_B), following

    def step(self, x_BD: Tensor, state: State) -> tuple[Tensor, State]:
        if not self.steppable:
            raise ModelError(
                "A bidirectional model cannot step: it reads each sequence from its end, too. "
                "Send whole sequences to /v1/predict, or train with model.bidirectional: false."
            )
        following: State = {}
        x = x_BD
        for layer, (prefix,) in enumerate(self.prefixes):
            cell = self.cell(prefix)
            after = cell.step(x, {name: state[f"{prefix}.{name}"] for name in cell.sizes})
            following.update({f"{prefix}.{name}": value for name, value in after.items()})
            x = x + after["h"] if self.residual and layer else after["h"]
        return x, following

    def _run(self, prefix: str, x_BTD: Tensor, state: State, window: Window, backward: bool) -> tuple[Tensor, State]:
        cell = self.cell(prefix)
        own = {name: state[f"{prefix}.{name}"] for name in cell.sizes}
        if not backward:
            y, after = cell(x_BTD, own, window)
            return y, after
        y, after = cell(window.turn(x_BTD), own, window.backward)
        return window.turn(y), after

    def _flat_prefixes(self) -> list[str]:
        return [prefix for prefixes in self.prefixes for prefix in prefixes]
