"""Dropout over time: a new mask at each step, or one for the whole window."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class TimeDropout(nn.Module):
    """Drops units of [B, T, D] in training.

    Args:
        prob: Chance to drop a unit, in [0, 1).
        variational: One mask for all steps (Gal and Ghahramani 2016, arXiv 1512.05287).
    """

    def __init__(self, prob: float, *, variational: bool) -> None:
        super().__init__()
        self.prob = prob
        self.variational = variational

    def forward(self, x_BTD: Tensor) -> Tensor:
        if not self.training or self.prob == 0:
            return x_BTD
        if not self.variational:
            return functional.dropout(x_BTD, self.prob)
        keep = 1 - self.prob
        mask_B1D = torch.empty_like(x_BTD[:, :1]).bernoulli_(keep) if x_BTD.shape[1] else x_BTD
        return x_BTD * mask_B1D / keep
