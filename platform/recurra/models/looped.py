"""Cells with options that torch's kernels lack: layer normalisation, zoneout, peepholes, and projection (on a CPU).

The products with the inputs are made for all steps at once. The rest runs step by step: on a CPU in one native call, but
for projection; else on torch's operations.
"""

from __future__ import annotations

import math
from abc import abstractmethod

import torch
from torch import Tensor, nn
from torch.nn import functional

from recurra.models.cells import GatedCell, chrono_bias, start_lstm_biases
from recurra.models.config import ModelConfig
from recurra.models.native import recurrent
from recurra.models.state import State, where_rows


class LoopedCell(GatedCell):
    """Base of the cells that run step by step.

    Layer normalisation (Ba, Kiros, Hinton 2016, arXiv 1607.06450) acts on the products with the inputs and with the
    last output, each over all gates of the layer. Zoneout (Krueger et al. 2017, arXiv 1606.01305) keeps a unit's old
    value by chance in training, and mixes old and new in the same proportion otherwise.
    """

    def __init__(self, input_size: int, config: ModelConfig, sizes: dict[str, int]) -> None:
        super().__init__(input_size, config, sizes)
        self.zoneout = config.regularisation.zoneout
        rows = self.gates * self.hidden_size
        self.norm_x: nn.Module = nn.LayerNorm(rows) if config.layer_norm else nn.Identity()
        self.norm_h: nn.Module = nn.LayerNorm(rows) if config.layer_norm else nn.Identity()

    def _sequence(
        self, x_BTD: Tensor, state: State, lengths_B: Tensor | None, weights: list[Tensor]
    ) -> tuple[Tensor, State]:
        batch, steps = x_BTD.shape[:2]
        kept: State = {}
        if self.training and self.zoneout:
            kept = {n: draw_kept((steps, batch, size), self.zoneout, x_BTD.device) for n, size in self.sizes.items()}
        projected_TBG = self._project(x_BTD.transpose(0, 1), weights)
        if self.kind is not None and self.runs_native(x_BTD):
            return self._run_native(projected_TBG, state, weights, lengths_B, kept)
        outputs = []
        full_steps = steps if lengths_B is None else int(lengths_B.min())
        for t, projected_BG in enumerate(projected_TBG.unbind(0)):
            following = self._mix(self._gate(projected_BG, state, weights), state, {n: m[t] for n, m in kept.items()})
            if lengths_B is not None and t >= full_steps:
                following = where_rows(lengths_B.to(x_BTD.device) > t, following, state)
            state = following
            outputs.append(state["h"])
        return torch.stack(outputs, 1), state

    def cell_weights(self, weights: list[Tensor]) -> recurrent.CellWeights:
        if not isinstance(self.norm_h, nn.LayerNorm):
            return super().cell_weights(weights)
        return recurrent.CellWeights(self.norm_h.bias + weights[3], self.norm_h.weight)

    def input_norm(self) -> tuple[Tensor, Tensor | None]:
        if not isinstance(self.norm_x, nn.LayerNorm):
            return super().input_norm()
        return self.norm_x.bias + self.bias_ih, self.norm_x.weight

    def _advance(self, x_BD: Tensor, state: State, weights: list[Tensor]) -> State:
        return self._mix(self._gate(self._project(x_BD, weights), state, weights), state, {})

    @abstractmethod
    def _gate(self, projected_BG: Tensor, state: State, weights: list[Tensor]) -> State:
        """The new state before zoneout, from the inputs' share of the pre-activations."""

    def _project(self, x: Tensor, weights: list[Tensor]) -> Tensor:
        projected: Tensor = self.norm_x(functional.linear(x, weights[0]))
        return projected + weights[2]

    def _recur(self, h_BH: Tensor, weights: list[Tensor]) -> Tensor:
        recurrent: Tensor = self.norm_h(functional.linear(h_BH, weights[1]))
        return recurrent + weights[3]

    def _mix(self, new: State, old: State, kept: State) -> State:
        """New and old values: by mask where there is one, else in proportion."""
        new = {name: value.to(old[name].dtype) for name, value in new.items()}
        if not self.zoneout:
            return new
        if kept:
            return where_units(kept, old, new)
        return {n: torch.lerp(v, old[n], self.zoneout) for n, v in new.items()}


def where_units(kept: State, old: State, new: State) -> State:
    """Unit by unit: the old value where the mask is True, else the new one."""
    return {name: torch.where(kept[name], old[name], value) for name, value in new.items()}


def draw_kept(shape: tuple[int, ...], prob: float, device: torch.device) -> Tensor:
    """A mask that is True with the given chance, to 1 / 65536: four units out of one draw, since draws are what it costs."""
    count = math.prod(shape)
    draws = torch.empty(-(-count // 4), dtype=torch.int64, device=device).random_(-(2**63), None)
    return (draws.view(torch.int16)[:count] < round(prob * 65536) - 32768).view(shape)


class LoopedElmanCell(LoopedCell):
    """As `ElmanCell`."""

    gates = 1

    def __init__(self, input_size: int, config: ModelConfig) -> None:
        super().__init__(input_size, config, {"h": config.hidden_size})
        self.relu = config.nonlinearity == "relu"

    @property
    def kind(self) -> str:
        return "relu" if self.relu else "tanh"

    def _gate(self, projected_BG: Tensor, state: State, weights: list[Tensor]) -> State:
        total_BH = projected_BG + self._recur(state["h"], weights)
        return {"h": total_BH.relu() if self.relu else total_BH.tanh()}


class LoopedGruCell(LoopedCell):
    """As `GruCell`."""

    gates = 3
    kind = "gru"

    def __init__(self, input_size: int, config: ModelConfig) -> None:
        super().__init__(input_size, config, {"h": config.hidden_size})
        if config.chrono_steps is not None:
            self.block(self.bias_ih, 1).copy_(chrono_bias(self.hidden_size, config.chrono_steps))

    def _gate(self, projected_BG: Tensor, state: State, weights: list[Tensor]) -> State:
        recurrent_BG = self._recur(state["h"], weights)
        size = self.hidden_size
        reset, update = (projected_BG[:, : 2 * size] + recurrent_BG[:, : 2 * size]).sigmoid().chunk(2, 1)
        proposed = torch.addcmul(projected_BG[:, 2 * size :], reset, recurrent_BG[:, 2 * size :]).tanh()
        return {"h": torch.lerp(proposed, state["h"], update)}


class LoopedLstmCell(LoopedCell):
    """As `LstmCell`, with peepholes (Gers, Schraudolph, Schmidhuber 2002: gates see the cell state) and with a learned
    projection of the output (Sak et al. 2014, arXiv 1402.1128) when the config has them."""

    gates = 4

    def __init__(self, input_size: int, config: ModelConfig) -> None:
        size = config.hidden_size
        super().__init__(input_size, config, {"h": config.projection_size or size, "c": size})
        self.norm_c: nn.Module = nn.LayerNorm(size) if config.layer_norm else nn.Identity()
        self.peepholes = nn.Parameter(torch.zeros(3, size)) if config.peephole else None
        """Of input, forget and output gate."""
        self.weight_hr: nn.Parameter | None = None
        if config.projection_size is not None:
            self.weight_hr = nn.Parameter(torch.empty(config.projection_size, size))
            nn.init.xavier_uniform_(self.weight_hr)
        start_lstm_biases(self, config)

    @property
    def kind(self) -> str | None:
        return "lstm" if self.weight_hr is None else None

    def cell_weights(self, weights: list[Tensor]) -> recurrent.CellWeights:
        own = super().cell_weights(weights)._replace(peepholes=self.peepholes)
        if not isinstance(self.norm_c, nn.LayerNorm):
            return own
        return own._replace(cell_gain=self.norm_c.weight, cell_shift=self.norm_c.bias)

    def _gate(self, projected_BG: Tensor, state: State, weights: list[Tensor]) -> State:
        entry, forget, cell, out = (projected_BG + self._recur(state["h"], weights)).chunk(4, 1)
        if self.peepholes is not None:
            entry = entry + self.peepholes[0] * state["c"]
            forget = forget + self.peepholes[1] * state["c"]
        c_BH = torch.addcmul(forget.sigmoid() * state["c"], entry.sigmoid(), cell.tanh())
        if self.peepholes is not None:
            out = out + self.peepholes[2] * c_BH
        h_BH = out.sigmoid() * self.norm_c(c_BH).tanh()
        return {"h": h_BH if self.weight_hr is None else functional.linear(h_BH, self.weight_hr), "c": c_BH}
