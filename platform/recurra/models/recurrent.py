"""Stacks of rnn, gru and lstm layers, in one or both directions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from recurra.errors import ModelError
from recurra.models.cells import Cell, ElmanCell, GruCell, LstmCell
from recurra.models.config import ModelConfig
from recurra.models.core import Core, Segment, blank_padding, cut_at_resets, mask_of
from recurra.models.dropout import TimeDropout
from recurra.models.state import State, StateSpec, StateTensor

CELLS: dict[str, type[Cell]] = {"rnn": ElmanCell, "gru": GruCell, "lstm": LstmCell}


class RecurrentStack(Core):
    """`config.layers` layers; state names are `0.h`, `0.c`, `1.h`, ... or `0.forward.h`, `0.backward.h`, ..."""

    def __init__(self, config: ModelConfig, input_size: int) -> None:
        super().__init__()
        directions = ("forward", "backward") if config.bidirectional else ("",)
        self.input_size = input_size
        self.output_size = config.hidden_size * len(directions)
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
                self.cells[prefix.replace(".", "_")] = CELLS[config.cell](size, config)
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
        window = _Window(steps, lengths_B, reset_BT, both=not self.steppable)
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
            after = cell.step(x, {name: state[f"{prefix}.{name}"] for name in cell.names})
            following.update({f"{prefix}.{name}": value for name, value in after.items()})
            x = x + after["h"] if self.residual and layer else after["h"]
        return x, following

    def _run(self, prefix: str, x_BTD: Tensor, state: State, window: _Window, backward: bool) -> tuple[Tensor, State]:
        cell = self.cell(prefix)
        own = {name: state[f"{prefix}.{name}"] for name in cell.names}
        if not backward:
            y, after = cell(x_BTD, own, window.segments)
            return y, after
        y, after = cell(window.reverse(x_BTD), own, window.reversed_segments)
        return window.reverse(y), after

    def _flat_prefixes(self) -> list[str]:
        return [prefix for prefixes in self.prefixes for prefix in prefixes]


class _Window:
    """How one window is cut, read from the front and, for bidirectional layers, from each row's last real step."""

    def __init__(self, steps: int, lengths_B: Tensor | None, reset_BT: Tensor | None, *, both: bool) -> None:
        self.steps = steps
        self.lengths_B = lengths_B
        self.segments: Sequence[Segment] = cut_at_resets(steps, lengths_B, reset_BT)
        self.reversed_segments: Sequence[Segment] = ()
        if both:
            turned_BT = None if reset_BT is None else self._turn_resets(reset_BT)
            self.reversed_segments = cut_at_resets(steps, lengths_B, turned_BT)

    def reverse(self, values_BTD: Tensor) -> Tensor:
        """Each row's real steps in reverse order; padding stays where it is."""
        if self.lengths_B is None:
            return values_BTD.flip(1)
        order_BT = self._order(self.lengths_B.to(values_BTD.device))
        return values_BTD.gather(1, order_BT[:, :, None].expand_as(values_BTD))

    def _order(self, lengths_B: Tensor) -> Tensor:
        steps_T = torch.arange(self.steps, device=lengths_B.device)
        mirrored_BT = lengths_B[:, None] - 1 - steps_T
        return torch.where(mirrored_BT >= 0, mirrored_BT, steps_T)

    def _turn_resets(self, reset_BT: Tensor) -> Tensor:
        """A sequence that starts at s ends, read backwards, at s: the one before it starts at the step after that."""
        lengths_B = (
            torch.full((reset_BT.shape[0],), self.steps, device=reset_BT.device)
            if self.lengths_B is None
            else self.lengths_B.to(reset_BT.device)
        )
        real_BT = reset_BT & mask_of(lengths_B, self.steps, reset_BT.device)
        ends_BT = torch.cat([real_BT[:, 1:], torch.zeros_like(real_BT[:, :1])], 1)
        return ends_BT.gather(1, self._order(lengths_B))
