"""What an anomaly detector expects of each step, and how far the step was from it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from recurra.models.sequence import ModelShape

Score = Literal["rank", "surprise", "forecast", "reconstruction"]

_SMALLEST_SPREAD = 0.02
"""Of a forecast, in standard deviations of the series: below, rounding errors of a constant sensor would be alarms."""


class Detector(ABC):
    """Base of the detectors."""

    shape: ModelShape

    @abstractmethod
    def judge(self, outputs: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Loss [B, T] in nats, to train with, and score [B, T], higher where the step was less expected.

        Args:
            outputs: [B, T, K] of the model.
            target: What came: events [B, T], or values [B, T, D] or [B, T, W, D].
        """


class EventDetector(Detector):
    """The next event of a log (Du et al. 2017, "DeepLog", CCS).

    Args:
        events: How many there are; ids behind them are the start of a sequence, and an event that is not known.
        score: `rank` of the event among those that could have come, 1 = the likeliest; or `surprise` in nats.
    """

    def __init__(self, events: int, score: Score) -> None:
        self.events = events
        self.score = score
        self.start, self.unknown = events, events + 1
        self.shape = ModelShape(input="tokens", input_size=events + 2, output_size=events, per_step=True)

    def judge(self, outputs: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """An event that is not known ranks behind all others, and counts as surprising as the unlikeliest one."""
        logs_BTE = functional.log_softmax(outputs.float(), dim=-1)
        known_BT = target < self.events
        own_BT1 = logs_BTE.gather(-1, target.clamp(max=self.events - 1)[..., None])
        own_BT1 = torch.where(known_BT[..., None], own_BT1, logs_BTE.amin(-1, keepdim=True))
        nats_BT = -own_BT1[..., 0]
        if self.score == "surprise":
            return nats_BT, nats_BT.detach()
        rank_BT = 1 + (logs_BTE > own_BT1).sum(-1)
        return nats_BT, torch.where(known_BT, rank_BT, self.events + 1).detach().float()


class ForecastDetector(Detector):
    """The next values, each with a spread of its own (a Laplace distribution, which one outlier does not upset).

    The score is the mean of |error| / spread over the values (Malhotra et al. 2015, "Long short term memory networks for
    anomaly detection in time series", ESANN, with the spread predicted instead of fitted).
    """

    def __init__(self, width: int) -> None:
        self.width = width
        self.shape = ModelShape(input="features", input_size=width + 1, output_size=2 * width, per_step=True)

    def judge(self, outputs: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        middle_BTD, raw_BTD = outputs.float().chunk(2, -1)
        spread_BTD = functional.softplus(raw_BTD) + _SMALLEST_SPREAD
        error_BTD = (target - middle_BTD).abs() / spread_BTD
        nats_BT = (error_BTD + (2 * spread_BTD).log()).mean(-1)
        return nats_BT, error_BTD.mean(-1).detach()


class ReconstructionDetector(Detector):
    """The last `window` steps, told again from the state alone, which has to be narrower than they are
    (Malhotra et al. 2016, arXiv 1607.00148; Srivastava et al. 2015, arXiv 1502.04681). The score is the mean error."""

    def __init__(self, width: int, window: int) -> None:
        self.width = width
        self.window = window
        self.shape = ModelShape(input="features", input_size=width + 1, output_size=width * window, per_step=True)

    def judge(self, outputs: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Windows that begin before the sequence are compared where it has steps: NaN marks where it has none."""
        said = outputs.float().reshape(target.shape)
        there = ~target.isnan()
        error = (torch.where(there, target, 0) - torch.where(there, said, 0)).abs()
        mean_BT = error.sum((-1, -2)) / there.sum((-1, -2)).clamp(min=1)
        return mean_BT, mean_BT.detach()
