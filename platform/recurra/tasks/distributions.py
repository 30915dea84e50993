"""What a forecaster may say of each future value: one number, quantiles, or the parameters of a distribution.

All are said in units of the series' scale, as distances from the base forecast, so that an output of zeros is the forecast
that nothing changes. Likelihoods are guarded: spreads have a floor, degrees of freedom lie above 2, logarithms of counts
are of at least a small number.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from recurra.tasks.inverses import negative_binomial_quantile, student_quantile
from recurra.tasks.quantiles import pinball

DistributionName = Literal["quantiles", "point", "gaussian", "student_t", "negative_binomial"]

_SMALLEST_SPREAD = 1e-3
_SMALLEST_MEAN = 1e-3
_START_SPREAD = math.log(math.expm1(0.3))
"""Softplus of it is 0.3: a usual error, in units of the scale."""
_LARGEST_LOG = 8.0
"""Of the factor by which the mean of a count may differ from its base."""


@dataclass(frozen=True)
class Unit:
    """What a forecast is relative to."""

    base: Tensor
    """[...] the forecast that nothing changes."""
    scale: Tensor
    """[...] unit of outputs and targets."""


class Distribution(ABC):
    """Base of the kinds."""

    size: int
    """Numbers of the model for each future value (P)."""

    @abstractmethod
    def loss(self, parameters: Tensor, target: Tensor, unit: Unit) -> Tensor:
        """[...] what training lowers; `parameters` [..., P], `target` [...] scaled."""

    @abstractmethod
    def quantiles(self, parameters: Tensor, levels: Sequence[float], unit: Unit) -> Tensor:
        """[..., levels] scaled, rising."""


class Quantiles(Distribution):
    """Pinball loss of some levels, mean over them."""

    def __init__(self, levels: Sequence[float]) -> None:
        self.levels = tuple(levels)
        self.size = len(self.levels)

    def loss(self, parameters: Tensor, target: Tensor, unit: Unit) -> Tensor:
        return pinball(target, parameters, parameters.new_tensor(self.levels)).mean(-1)

    def quantiles(self, parameters: Tensor, levels: Sequence[float], unit: Unit) -> Tensor:
        """Linear between the trained levels; levels outside them take the outermost."""
        values = parameters.sort(-1).values
        columns = []
        for level in levels:
            place = sum(known < level for known in self.levels)
            if place in (0, self.size) or self.levels[min(place, self.size - 1)] == level:
                columns.append(values[..., min(place, self.size - 1)])
                continue
            low, high = self.levels[place - 1], self.levels[place]
            columns.append(values[..., place - 1].lerp(values[..., place], (level - low) / (high - low)))
        return torch.stack(columns, -1)


class Point(Distribution):
    """The median alone, by absolute error; all its quantiles are equal."""

    size = 1

    def loss(self, parameters: Tensor, target: Tensor, unit: Unit) -> Tensor:
        return (target - parameters[..., 0]).abs()

    def quantiles(self, parameters: Tensor, levels: Sequence[float], unit: Unit) -> Tensor:
        return parameters.expand(*parameters.shape[:-1], len(levels))


class Gaussian(Distribution):
    """Mean and spread (Salinas, Flunkert, Gasthaus 2020, "DeepAR", arXiv 1704.04110, equation 3)."""

    size = 2

    def loss(self, parameters: Tensor, target: Tensor, unit: Unit) -> Tensor:
        mean, spread = parameters[..., 0], _spread(parameters[..., 1])
        nats: Tensor = 0.5 * ((target - mean) / spread).square() + spread.log() + 0.5 * math.log(2 * math.pi)
        return nats

    def quantiles(self, parameters: Tensor, levels: Sequence[float], unit: Unit) -> Tensor:
        standard_Q = torch.special.ndtri(torch.tensor(levels, dtype=torch.float64)).to(parameters)
        values: Tensor = parameters[..., :1] + _spread(parameters[..., 1:2]) * standard_Q
        return values


class StudentT(Distribution):
    """Middle, spread and degrees of freedom above 2, so that the variance is finite: for series with outliers."""

    size = 3

    def loss(self, parameters: Tensor, target: Tensor, unit: Unit) -> Tensor:
        middle, spread, freedom = parameters[..., 0], _spread(parameters[..., 1]), _freedom(parameters[..., 2])
        error = ((target - middle) / spread).square()
        norm = torch.lgamma(freedom / 2) - torch.lgamma((freedom + 1) / 2) + 0.5 * (math.pi * freedom).log()
        return norm + spread.log() + (freedom + 1) / 2 * torch.log1p(error / freedom)

    def quantiles(self, parameters: Tensor, levels: Sequence[float], unit: Unit) -> Tensor:
        freedom = _freedom(parameters[..., 2:3]).double()
        levels_Q = torch.tensor(levels, dtype=torch.float64, device=parameters.device)
        standard = student_quantile(levels_Q.expand(*freedom.shape[:-1], -1), freedom)
        return parameters[..., :1] + _spread(parameters[..., 1:2]) * standard.to(parameters)


class NegativeBinomial(Distribution):
    """Counts with a mean and a shape (DeepAR, equation 4); variance = mean + shape * mean^2.

    The mean is the base times exp(first output). Needs task.transform: none.
    """

    size = 2

    def loss(self, parameters: Tensor, target: Tensor, unit: Unit) -> Tensor:
        mean, rate = self._mean_and_rate(parameters, unit)
        count = (unit.base + unit.scale * target).clamp(min=0)
        chosen = torch.lgamma(count + 1) + torch.lgamma(rate) - torch.lgamma(count + rate)
        log_total = (mean + rate).log()
        return chosen + rate * (log_total - rate.log()) + count * (log_total - mean.log())

    def quantiles(self, parameters: Tensor, levels: Sequence[float], unit: Unit) -> Tensor:
        """The smallest count that so much probability is at or below."""
        mean, rate = (part.double()[..., None] for part in self._mean_and_rate(parameters, unit))
        levels_Q = torch.tensor(levels, dtype=torch.float64, device=parameters.device)
        count = negative_binomial_quantile(levels_Q, mean, rate)
        return ((count - unit.base[..., None]) / unit.scale[..., None]).to(parameters)

    def _mean_and_rate(self, parameters: Tensor, unit: Unit) -> tuple[Tensor, Tensor]:
        least = _SMALLEST_MEAN * unit.scale.clamp(min=1)
        mean = unit.base.clamp(min=least) * parameters[..., 0].clamp(-_LARGEST_LOG, _LARGEST_LOG).exp()
        return mean, 1 / _spread(parameters[..., 1])


KINDS: dict[str, type[Distribution]] = {
    "point": Point,
    "gaussian": Gaussian,
    "student_t": StudentT,
    "negative_binomial": NegativeBinomial,
}


def build_distribution(name: DistributionName, levels: Sequence[float]) -> Distribution:
    """The kind that `task.distribution` names; `levels` are those of quantiles."""
    return Quantiles(levels) if name == "quantiles" else KINDS[name]()


def _spread(raw: Tensor) -> Tensor:
    return functional.softplus(raw + _START_SPREAD) + _SMALLEST_SPREAD


def _freedom(raw: Tensor) -> Tensor:
    return 2.01 + functional.softplus(raw + 4.0)
