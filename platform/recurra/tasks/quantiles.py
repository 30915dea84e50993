"""Quantiles of a forecast: their loss, levels between them, and the mean that they stand for."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor


def pinball(target: Tensor, predicted_Q: Tensor, levels_Q: Tensor) -> Tensor:
    """[..., Q] pinball loss (Koenker and Bassett 1978): at level q, q for each unit too low and 1 - q for each too high."""
    error_Q = target[..., None] - predicted_Q
    return (levels_Q * error_Q).maximum((levels_Q - 1) * error_Q)


def at_levels(values_FQ: NDArray[np.float64], known: Sequence[float], wanted: Sequence[float]) -> NDArray[np.float64]:
    """[F, wanted] values at some levels, linear between the known ones; levels outside them take the outermost."""
    return np.stack([np.interp(wanted, known, row) for row in values_FQ])


def mean_of_quantiles(values_FQ: NDArray[np.float64], levels: Sequence[float]) -> NDArray[np.float64]:
    """[F] mean of the distribution that is linear between the quantiles and ends at the outermost ones."""
    edges = np.concatenate([[0.0], levels, [1.0]])
    padded = np.concatenate([values_FQ[:, :1], values_FQ, values_FQ[:, -1:]], axis=1)
    return np.asarray(((padded[:, 1:] + padded[:, :-1]) / 2 * np.diff(edges)).sum(axis=1))
