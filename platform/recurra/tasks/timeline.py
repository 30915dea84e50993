"""Calendar positions of evenly spaced time steps: which month, weekday or hour each step of a series falls in."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Frequency = Literal["second", "minute", "hour", "day", "week", "month", "quarter", "year"]

SEASONS: dict[Frequency, int] = {
    "second": 60,
    "minute": 60,
    "hour": 24,
    "day": 7,
    "week": 52,
    "month": 12,
    "quarter": 4,
    "year": 1,
}
"""Steps of the usual season of each frequency."""

_SECONDS = {"second": 1, "minute": 60, "hour": 3600, "day": 86_400, "week": 604_800}
_MONTHS = {"month": 1, "quarter": 3, "year": 12}

_CYCLES: dict[Frequency, tuple[tuple[Literal["hour", "weekday", "month", "quarter"], int], ...]] = {
    "second": (("hour", 24),),
    "minute": (("hour", 24), ("weekday", 7)),
    "hour": (("hour", 24), ("weekday", 7)),
    "day": (("weekday", 7), ("month", 12)),
    "week": (("month", 12),),
    "month": (("month", 12),),
    "quarter": (("quarter", 4),),
    "year": (),
}


def calendar_width(frequency: Frequency) -> int:
    """Features of one step in `calendar_one_hots`."""
    return sum(size for _, size in _CYCLES[frequency])


def calendar_one_hots(start: datetime, frequency: Frequency, steps: int, first: int = 0) -> NDArray[np.float32]:
    """[T, D] one-hot positions in each calendar cycle of the frequency, for steps `first` to `first + steps - 1`."""
    times = _times(start, frequency, np.arange(first, first + steps))
    blocks = []
    for cycle, size in _CYCLES[frequency]:
        blocks.append(np.eye(size, dtype=np.float32)[_position(times, cycle)])
    return np.concatenate(blocks, axis=1) if blocks else np.zeros((steps, 0), np.float32)


def step_time(start: datetime, frequency: Frequency, step: int) -> str:
    """ISO 8601 time of one step; a date alone for steps of a day or longer. The day of the month is kept where it can."""
    time = _times(start, frequency, np.array([step]))[0]
    if frequency in _MONTHS:
        days = (time + 1).astype("datetime64[D]") - time.astype("datetime64[D]")
        return str(time.astype("datetime64[D]") + min(start.day, int(days.astype(np.int64))) - 1)
    return str(time.astype("datetime64[D]") if _SECONDS[frequency] >= _SECONDS["day"] else time)


def parse_time(text: str) -> datetime:
    """`1982-04`, `1982-04-01`, or any ISO 8601 time; an offset is converted to UTC.

    Raises:
        ValueError: It is none of them.
    """
    value = datetime.fromisoformat(f"{text}-01" if re.fullmatch(r"\d{4}-\d{2}", text) else text)
    return value.astimezone(UTC).replace(tzinfo=None) if value.tzinfo else value


def _times(start: datetime, frequency: Frequency, steps: NDArray[np.int64]) -> NDArray[np.datetime64]:
    """In seconds, or in months for steps whose length in days varies."""
    origin = np.array([start.replace(tzinfo=None)], "datetime64[s]")
    if frequency in _MONTHS:
        months = origin.astype("datetime64[M]").astype(np.int64) + steps * _MONTHS[frequency]
        return months.astype("datetime64[M]")
    return (origin.astype(np.int64) + steps * _SECONDS[frequency]).astype("datetime64[s]")


def _position(times: NDArray[np.datetime64], cycle: str) -> NDArray[np.int64]:
    months = times.astype("datetime64[M]").astype(np.int64) % 12
    if cycle == "month":
        return months
    if cycle == "quarter":
        return months // 3
    if cycle == "weekday":
        return (times.astype("datetime64[D]").astype(np.int64) + 3) % 7  # 1970-01-01 was a Thursday; Monday is 0
    return times.astype("datetime64[h]").astype(np.int64) % 24
