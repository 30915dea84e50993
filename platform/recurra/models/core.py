"""The protocol of every recurrent core, and what all cores share: masks of padding and cuts at resets.

Law: `forward` equals `step` repeated (in eval mode), and a batch equals its rows alone.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from recurra.errors import ModelError
from recurra.models.state import State, StateSpec


class Core(nn.Module, ABC):
    """Features in, hidden units out, state as a value that the caller owns."""

    input_size: int
    """Features of one step (D)."""
    output_size: int
    """Units of one output (H)."""
    steppable: bool = True
    """False where an output needs steps that are still to come."""

    @property
    @abstractmethod
    def state_spec(self) -> StateSpec:
        """Names, shapes and dtypes of the state; dtypes follow the parameters."""

    @abstractmethod
    def zero_state(self, batch: int, device: torch.device | str = "cpu") -> State:
        """What every sequence starts from, [B, ...]; learned starts carry gradients."""

    @abstractmethod
    def forward(
        self,
        x_BTD: Tensor,
        state: State | None = None,
        lengths_B: Tensor | None = None,
        reset_BT: Tensor | None = None,
    ) -> tuple[Tensor, State]:
        """Advance over whole rows.

        Args:
            x_BTD: Features; what stands after a row's length is ignored, NaN too.
            state: State before the first step; None starts every row anew. Read, never written.
            lengths_B: Real steps of each row, int64, 0 allowed, any device; None = all T.
            reset_BT: True where the state is set back to its start just before the step.

        Returns:
            `y_BTH`, zero after each row's length, and the state after each row's last real step.
        """

    @abstractmethod
    def step(self, x_BD: Tensor, state: State) -> tuple[Tensor, State]:
        """One time step for every row, without dropout: `y_BH` and a new state.

        Raises:
            ModelError: The core is not steppable.
        """

    def trace(
        self,
        x_BTD: Tensor,
        state: State | None = None,
        lengths_B: Tensor | None = None,
        reset_BT: Tensor | None = None,
    ) -> tuple[Tensor, State, dict[str, Tensor]]:
        """As `forward`, and what the core attended to at each step.

        Raises:
            ModelError: The core has no memory to attend to.
        """
        raise ModelError(
            f"A {type(self).__name__} has no weightings to show. Only model.cell: ntm has them; ask for outputs instead."
        )


@dataclass(frozen=True)
class Segment:
    """Steps `begin` to `end` of a window, in which no row starts a new sequence except at `begin`."""

    begin: int
    end: int
    reset_B: Tensor | None
    """Rows that start anew at `begin`; None when no row does."""
    lengths_B: Tensor | None
    """Real steps of each row inside the segment; None when all rows are full."""


def cut_at_resets(steps: int, lengths_B: Tensor | None, reset_BT: Tensor | None) -> list[Segment]:
    """Segments of a window of `steps` steps, cut where any row starts a new sequence; resets in padding do not count."""
    starts = [0]
    if reset_BT is not None:
        if lengths_B is not None:
            reset_BT = reset_BT & mask_of(lengths_B, steps, reset_BT.device)
        starts = sorted({0, *reset_BT.any(0).nonzero().flatten().tolist()})
    segments = []
    for begin, end in zip(starts, [*starts[1:], steps], strict=True):
        reset_B = None if reset_BT is None or steps == 0 else reset_BT[:, begin]
        inside_B = None if lengths_B is None else (lengths_B - begin).clamp(0, end - begin)
        if inside_B is not None and bool((inside_B == end - begin).all()):
            inside_B = None
        segments.append(Segment(begin, end, reset_B, inside_B))
    return segments


def mask_of(lengths_B: Tensor, steps: int, device: torch.device) -> Tensor:
    """[B, T] True at real steps."""
    return torch.arange(steps, device=device) < lengths_B.to(device)[:, None]


def blank_padding(values_BTD: Tensor, lengths_B: Tensor | None) -> Tensor:
    """Zero after each row's length, whatever stood there."""
    if lengths_B is None or bool((lengths_B >= values_BTD.shape[1]).all()):
        return values_BTD
    # Twice as fast as masked_fill, forwards and backwards, which looks at a flag for each number.
    padding_N = (~mask_of(lengths_B, values_BTD.shape[1], lengths_B.device)).flatten().nonzero().flatten()
    return values_BTD.flatten(0, 1).index_fill(0, padding_N.to(values_BTD.device), 0).view(values_BTD.shape)


def last_real(values_BTH: Tensor, lengths_B: Tensor, otherwise_BH: Tensor) -> Tensor:
    """[B, H] values at each row's last real step; `otherwise_BH` for rows without one."""
    lengths_B = lengths_B.to(values_BTH.device)
    rows_B = torch.arange(values_BTH.shape[0], device=values_BTH.device)
    chosen_BH = values_BTH[rows_B, (lengths_B - 1).clamp(min=0)]
    return torch.where(lengths_B[:, None] > 0, chosen_BH, otherwise_BH.to(chosen_BH.dtype))
