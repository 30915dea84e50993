"""One series as a forecaster's inputs: its own past, its calendar and its groups, step by step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import numpy as np
from numpy.typing import NDArray

from recurra.tasks.history import FEATURES, Transform, look_back, steps_back, transform
from recurra.tasks.timeline import Frequency, calendar_one_hots, calendar_width


@dataclass(frozen=True)
class SeriesShape:
    """What is the same for all series of a task."""

    transform: Transform
    season: int
    """Steps."""
    horizon: int
    """Steps ahead (F)."""
    frequency: Frequency
    dated: bool
    """Whether calendar features are made, for which series have a start."""
    groups: tuple[int, ...]
    """Number of groups of each static column."""
    known: int = 0
    """Covariates that are known ahead (C)."""

    @property
    def width(self) -> int:
        """Features of one step (D)."""
        calendar = calendar_width(self.frequency) if self.dated else 0
        return FEATURES + calendar + sum(self.groups) + self.known * (self.horizon + 1)

    @property
    def memory(self) -> int:
        """Values that a session keeps so that its next step gets the features that the whole series would give."""
        return steps_back(self.season) + 1

    @property
    def shortest(self) -> int:
        """Values that a forecast needs: a season, and one behind it."""
        return self.season + 1


@dataclass(frozen=True)
class Place:
    """Where a stretch of a series stands."""

    start: datetime | None = None
    """Time of the series' first step; None = undated."""
    first: int = 0
    """Steps from the start to the first value of the stretch."""
    groups: tuple[int | None, ...] = ()
    """Group in each static column; None = unknown, whose features are all zero."""


@dataclass(frozen=True)
class SeriesInputs:
    """A stretch of T steps; what `LookBack` says of scale and base holds here."""

    features_TD: NDArray[np.float32]
    scale_T: NDArray[np.float64]
    base_TF: NDArray[np.float64]


def series_inputs(
    shape: SeriesShape, values_T: NDArray[np.float64], place: Place, known_SC: NDArray[np.float64] | None = None
) -> SeriesInputs:
    """Inputs at every step of a stretch; values are in range for the transform.

    Args:
        shape: Of the task.
        values_T: The stretch.
        place: Where it stands.
        known_SC: Covariates of its steps and of those behind it, as far as they are known; zeros stand for the rest.
    """
    past = look_back(transform(values_T, shape.transform), shape.transform, shape.season, shape.horizon)
    blocks = [past.features_TD]
    if shape.dated:
        assert place.start is not None  # dated tasks check it where series come in
        blocks.append(calendar_one_hots(place.start, shape.frequency, values_T.size, place.first))
    if shape.groups:
        blocks.append(np.tile(_one_hots(shape.groups, place.groups), (values_T.size, 1)))
    if shape.known:
        known_SC = np.zeros((0, shape.known)) if known_SC is None else known_SC[: values_T.size + shape.horizon]
        padded = np.pad(known_SC, ((0, values_T.size + shape.horizon - len(known_SC)), (0, 0)))
        ahead = np.lib.stride_tricks.sliding_window_view(padded, shape.horizon + 1, axis=0)
        blocks.append(ahead.reshape(values_T.size, -1).astype(np.float32))
    return SeriesInputs(np.concatenate(blocks, axis=1), past.scale_T, past.base_TF)


def futures(values_T: NDArray[np.float64], origins: int, horizon: int) -> NDArray[np.float64]:
    """[origins, F] the values behind each of the first `origins` steps; NaN behind the end."""
    padded = np.concatenate([values_T[1:], np.full(horizon, np.nan)])
    return np.lib.stride_tricks.sliding_window_view(padded, horizon)[:origins]


def seasonal_error(values_T: NDArray[np.float64], season: int) -> float:
    """Mean absolute change from one season to the next: MASE's unit; NaN when there is none to measure."""
    if values_T.size <= season:
        return float("nan")
    error = float(np.abs(values_T[season:] - values_T[:-season]).mean())
    return error if error > 0 else float("nan")


def _one_hots(sizes: Sequence[int], groups: Sequence[int | None]) -> NDArray[np.float32]:
    row = np.zeros(sum(sizes), np.float32)
    offset = 0
    for size, group in zip(sizes, groups, strict=True):
        if group is not None:
            row[offset + group] = 1
        offset += size
    return row
