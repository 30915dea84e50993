"""How long an engine's ticks took lately, read from the histograms that it fills anyway."""

from __future__ import annotations

import itertools

from recurra.telemetry.metrics import Metrics
from recurra.telemetry.table import BY_NAME

HISTOGRAMS = ("recurra_step_time_seconds", "recurra_encode_time_seconds")
SHARE = 0.95


class TickTimes:
    """Steps and forward passes since one last asked.

    Args:
        metrics: Of the engine.
    """

    def __init__(self, metrics: Metrics) -> None:
        self._histograms = [metrics.histogram(name) for name in HISTOGRAMS]
        self._bounds = BY_NAME[HISTOGRAMS[0]].buckets
        assert self._bounds == BY_NAME[HISTOGRAMS[1]].buckets
        self._before = [0] * (len(self._bounds) + 1)

    def p95_ms(self) -> float:
        """95 of 100 took at most about so many milliseconds, to the width of a bucket; 0 when there were none."""
        counts = [sum(column) for column in zip(*(one.read()[0] for one in self._histograms), strict=True)]
        new = [count - before for count, before in zip(counts, self._before, strict=True)]
        self._before = counts
        wanted = SHARE * sum(new)
        if not wanted:
            return 0.0
        index = next(index for index, total in enumerate(itertools.accumulate(new)) if total >= wanted)
        if index == len(self._bounds):
            return 1e3 * self._bounds[-1]
        low = self._bounds[index - 1] if index else 0.0
        inside: float = (wanted - sum(new[:index])) / new[index]
        return 1e3 * (low + inside * (self._bounds[index] - low))
