"""Quantiles of distributions that torch has no inverse of: Student's t, and the negative binomial. In float64."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

_BISECTIONS = 46
_NODES = 32
_MOST_COUNTED = 4096
"""Counts that are added up one by one; larger ones are taken from the gamma distribution that they tend to."""


def student_quantile(levels: Tensor, freedom: Tensor) -> Tensor:
    """Where Student's t has these cumulative probabilities, to 1e-6; `levels` in (0, 1), `freedom` above 1.

    With t = sqrt(v) tan(a) the density is c cos(a)^(v - 1), which Gauss and Legendre integrate from 0 to a.
    """
    freedom = freedom + torch.zeros_like(levels)
    nodes, weights = (torch.from_numpy(part).to(levels) for part in np.polynomial.legendre.leggauss(_NODES))
    log_c = torch.lgamma((freedom + 1) / 2) - torch.lgamma(freedom / 2) - 0.5 * math.log(math.pi)
    wanted = (levels - 0.5).abs()
    low, high = torch.zeros_like(freedom), torch.full_like(freedom, math.pi / 2 - 1e-9)
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        angles = middle[..., None] * (nodes + 1) / 2
        density = (log_c[..., None] + (freedom[..., None] - 1) * angles.cos().log()).exp()
        below = (density * weights).sum(-1) * middle / 2 < wanted
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return freedom.sqrt() * ((low + high) / 2).tan() * (levels - 0.5).sign()


def negative_binomial_quantile(levels: Tensor, mean: Tensor, rate: Tensor) -> Tensor:
    """The smallest count whose cumulative probability is at least each level; variance = mean + mean^2 / rate."""
    mean, rate = mean + torch.zeros_like(levels), rate + torch.zeros_like(levels)
    chance = mean / (mean + rate)
    mass = (-rate * torch.log1p(mean / rate)).exp()
    total, found = mass.clone(), torch.zeros_like(mean)
    deviation = (mean + mean.square() / rate).sqrt()
    counted = (mean < _MOST_COUNTED / 4) & (mean + 10 * deviation < _MOST_COUNTED)
    for count in range(1, _MOST_COUNTED):
        open_ = counted & (total < levels)
        if not open_.any():
            break
        mass = mass * chance * (rate + count - 1) / count
        total = total + mass
        found = torch.where(open_, count, found)
    return found if bool(counted.all()) else torch.where(counted, found, _gamma_quantile(levels, mean, rate).round())


def _gamma_quantile(levels: Tensor, mean: Tensor, rate: Tensor) -> Tensor:
    """Of the gamma distribution with this mean and shape."""
    low, high = torch.zeros_like(mean), rate + 60 * rate.sqrt() + 60
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        below = torch.special.gammainc(rate, middle) < levels
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return (low + high) / 2 * mean / rate
