"""Numbers to pixels, and to short texts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class Axis:
    """Maps `low` to the pixel `start` and `high` to `end`."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    @classmethod
    def around(cls, values: Numbers, start: float, end: float, *, log: bool = False, from_zero: bool = False) -> Axis:
        finite = values[np.isfinite(values)]
        low, high = (float(finite.min()), float(finite.max())) if len(finite) else (0.0, 1.0)
        if log:
            low, high = math.log10(low), math.log10(high)
        if from_zero and not log:
            low = min(low, 0.0)
        if high - low <= 1e-9 * max(abs(low), abs(high), 1e-9):
            half = 0.5 if log else 0.5 * max(abs(low), 1.0)
            low, high = (low - half, high + half) if low or log else (0.0, 1.0)
        margin = 0.0 if start < end else 0.04 * (high - low)  # air above and below, none at the sides
        return cls(low if from_zero else low - margin, high + margin, start, end, log)

    def at(self, value: float) -> float:
        position = math.log10(value) if self.log else value
        return self.start + (position - self.low) / (self.high - self.low) * (self.end - self.start)

    def ticks(self) -> list[float]:
        """Round numbers within the axis, about five."""
        if self.log:
            powers = range(math.ceil(self.low), math.floor(self.high) + 1)
            if len(powers) >= 2:
                return [10.0**power for power in powers][:: max(1, len(powers) // 5)]
            spread = _round_numbers(10**self.low, 10**self.high)
            return [value for value in spread if value > 0]
        return _round_numbers(self.low, self.high)


def _round_numbers(low: float, high: float) -> list[float]:
    raw = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [number * step for number in range(first, math.floor(high / step + 1e-9) + 1)]


def number_text(value: float) -> str:
    """`12`, `0.003`, `1.5k`, `3M`, `1e-5`, `2.5e-5`."""
    size = abs(value)
    if size >= 1e9 or (0 < size < 1e-3):
        digits, power = f"{value:.1e}".split("e")
        return f"{digits.removesuffix('.0')}e{int(power)}"
    for factor, suffix in ((1e6, "M"), (1e4, "k")):
        if size >= factor:
            return f"{value / (1e3 if suffix == 'k' else 1e6):.4g}{suffix}"
    return f"{value:.4g}"


def percent_texts(values: Sequence[float]) -> list[str]:
    """Shares in per cent, all with as many digits as the one needs that has most."""
    digits = next(d for d in range(9) if d == 8 or all(math.isclose(v, round(v, d + 2), abs_tol=1e-12) for v in values))
    return [f"{value:.{digits}%}" for value in values]


def seconds_text(value: float) -> str:
    """`45 s`, `3:05`, `2:10:00`."""
    if value < 60:
        return f"{value:.0f} s"
    minutes, rest = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
