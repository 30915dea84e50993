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

FEATURES = 6
"""Numbers that `look_back` gives for one step."""

SEASONS_AVERAGED = 3
"""Seasons whose pattern is averaged: one alone passes its noise on to every forecast."""

_FLOOR = 1e-6
_LARGEST_LOG = 700.0


@dataclass(frozen=True)
class LookBack:
    """One series after its transform, seen from each of its steps.

    Steps of the first season are seen relative to the mean of that season, which is known once it is over: only
    origins behind it are forecast from.
    """

    features_TD: NDArray[np.float32]
    scale_T: NDArray[np.float64]
    """Unit of features and outputs at each step: the mean absolute value of the last season, 1 after a log."""
    base_TF: NDArray[np.float64]
    """Level of the last season, plus how far the same steps of the last three seasons were from theirs: what each
    future step would be if nothing changed."""


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
    """Features, scale and base at every step of one transformed series [T].

    A step behind the first season depends on the `steps_back(season)` values before it and on no other.
    """
    level = _level(z_T, season)
    scale = np.ones_like(z_T) if kind != "none" else np.maximum(_level(np.abs(z_T), season), _FLOOR)
    swing = z_T - level
    features = np.stack(
        [
            swing / scale,
            (z_T - _shift(z_T, 1)) / scale,
            (z_T - _shift(z_T, season)) / scale,
            (level - _shift(level, season)) / scale,
            (swing - _usual_swing(swing, season, np.zeros(1, np.int64))[:, 0]) / scale,
            np.arange(z_T.size) >= season,
        ],
        axis=1,
    )
    base_TF = level[:, None] + _usual_swing(swing, season, np.arange(1, horizon + 1))
    return LookBack(features.astype(np.float32), scale, base_TF)


def steps_back(season: int) -> int:
    """Earlier values that one step depends on."""
    return (SEASONS_AVERAGED + 1) * season


def _shift(values: NDArray[np.float64], steps: int) -> NDArray[np.float64]:
    """The value `steps` earlier; the earliest one where there is none."""
    return values[np.maximum(np.arange(values.size) - steps, 0)]


def _level(values: NDArray[np.float64], season: int) -> NDArray[np.float64]:
    """Mean of the season that ends at each step; in the first season, the mean of that one."""
    if values.size <= season:
        return np.full(values.size, values.mean() if values.size else 0.0)
    means = np.lib.stride_tricks.sliding_window_view(values, season).mean(axis=1)
    return np.concatenate([np.full(season - 1, means[0]), means])


def _usual_swing(swing: NDArray[np.float64], season: int, ahead: NDArray[np.int64]) -> NDArray[np.float64]:
    """[T, len(ahead)] mean swing in the last seasons of the step so many steps ahead; 0 where none was seen.

    Of step t itself (ahead = 0) only seasons before it count.
    """
    first = ahead - season * np.maximum(-(-ahead // season), 1)
    back = first[:, None] - season * np.arange(SEASONS_AVERAGED)
    at = np.arange(swing.size)[:, None, None] + back
    seen = at >= 0
    total = np.where(seen, swing[np.maximum(at, 0)], 0).sum(axis=2) if swing.size else np.zeros(at.shape[:2])
    return np.asarray(total / np.maximum(seen.sum(axis=2), 1))
