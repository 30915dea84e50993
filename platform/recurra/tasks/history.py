"""What a forecaster sees of a series at each step, from that step and earlier ones alone.

Everything is relative to the series' own recent level, so that one model serves series of any size, and causal, so
that a session that steps gets the numbers that the whole series would give.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Transform = Literal["none", "log", "log1p"]

FEATURES = 5
"""Numbers that `look_back` gives for one step."""

_FLOOR = 1e-6
_LARGEST_LOG = 700.0


@dataclass(frozen=True)
class LookBack:
    """One series after its transform, seen from each of its steps."""

    features_TD: NDArray[np.float32]
    scale_T: NDArray[np.float64]
    """Unit of features and outputs at each step: the mean absolute value of the last season, 1 after a log."""
    base_TF: NDArray[np.float64]
    """Transformed value one or more whole seasons before each future step: the seasonal naive forecast."""


def transform(values: NDArray[np.float64], kind: Transform) -> NDArray[np.float64]:
    """Values on the scale that the model works on; `log` needs values above 0, `log1p` above -1."""
    if kind == "log":
        return np.log(values)
    return np.log1p(values) if kind == "log1p" else values


def undo(values: NDArray[np.float64], kind: Transform) -> NDArray[np.float64]:
    """Back from the model's scale; the inverse of `transform`. Finite for any finite value."""
    if kind == "none":
        return values
    values = np.minimum(values, _LARGEST_LOG)
    return np.exp(values) if kind == "log" else np.expm1(values)


def look_back(z_T: NDArray[np.float64], kind: Transform, season: int, horizon: int) -> LookBack:
    """Features, scale and seasonal base at every step of one transformed series [T].

    A step sees at most `steps_back(season)` values: the steps of the last two seasons.
    """
    level = _trailing_mean(z_T, season)
    scale = np.ones_like(z_T) if kind != "none" else np.maximum(_trailing_mean(np.abs(z_T), season), _FLOOR)
    before, year_ago = _shift(z_T, 1), _shift(z_T, season)
    features = np.stack(
        [
            (z_T - level) / scale,
            (z_T - before) / scale,
            (z_T - year_ago) / scale,
            (level - _shift(level, season)) / scale,
            np.arange(z_T.size) >= season,
        ],
        axis=1,
    )
    return LookBack(features.astype(np.float32), scale, _seasonal_base(z_T, season, horizon))


def steps_back(season: int) -> int:
    """Earlier values that one step's features depend on."""
    return 2 * season - 1 if season > 1 else 2


def _shift(values: NDArray[np.float64], steps: int) -> NDArray[np.float64]:
    """The value `steps` earlier; the earliest one where there is none."""
    return values[np.maximum(np.arange(values.size) - steps, 0)]


def _trailing_mean(values: NDArray[np.float64], steps: int) -> NDArray[np.float64]:
    """Mean of the last `steps` values up to each position, of fewer at the start."""
    if not values.size:
        return values
    padded = np.concatenate([np.zeros(steps - 1), values])
    total = np.lib.stride_tricks.sliding_window_view(padded, steps).sum(axis=1)
    return np.asarray(total / np.minimum(np.arange(values.size) + 1, steps))


def _seasonal_base(z_T: NDArray[np.float64], season: int, horizon: int) -> NDArray[np.float64]:
    ahead = np.arange(1, horizon + 1)
    back = ahead - season * -(-ahead // season)  # 0 or less: from the last season that has been seen
    at = np.arange(z_T.size)[:, None] + back[None, :]
    return z_T[np.maximum(at, 0)]
