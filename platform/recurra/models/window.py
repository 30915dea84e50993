"""One window of rows: which steps are real, where sequences start, and how to read it backwards."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from recurra.models.core import Segment, cut_at_resets, mask_of


@dataclass(frozen=True)
class Window:
    """What `Core.forward` is told about its rows."""

    steps: int
    lengths_B: Tensor | None
    """Real steps of each row; None when all are full."""
    reset_BT: Tensor | None
    """True where a new sequence starts; None when none does."""

    @cached_property
    def segments(self) -> list[Segment]:
        """The window cut where any row starts a new sequence."""
        return cut_at_resets(self.steps, self.lengths_B, self.reset_BT)

    @cached_property
    def backward(self) -> Window:
        """The window as it is met when each row is read from its last real step.

        A sequence that starts at s ends, read backwards, at s; the one before it starts right after that.
        """
        if self.reset_BT is None or self.steps == 0:
            return self
        starts_BT = self.reset_BT
        if self.lengths_B is not None:
            starts_BT = starts_BT & mask_of(self.lengths_B, self.steps, starts_BT.device)
        ends_BT = torch.cat([starts_BT[:, 1:], torch.zeros_like(starts_BT[:, :1])], 1)
        return Window(self.steps, self.lengths_B, self.turn(ends_BT[:, :, None])[:, :, 0])

    def turn(self, values_BTD: Tensor) -> Tensor:
        """Each row's real steps in reverse order; padding stays where it is."""
        if self.lengths_B is None:
            return values_BTD.flip(1)
        steps_T = torch.arange(self.steps, device=values_BTD.device)
        mirrored_BT = self.lengths_B.to(values_BTD.device)[:, None] - 1 - steps_T
        order_BT = torch.where(mirrored_BT >= 0, mirrored_BT, steps_T)
        return values_BTD.gather(1, order_BT[:, :, None].expand_as(values_BTD))
