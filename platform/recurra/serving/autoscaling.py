"""How many replicas a service needs, from the load that its engines report. Ray calls it; it knows no Ray."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Protocol

LOAD = "load"
TICK_P95_MS = "tick_p95_ms"
"""Names of the numbers that replicas report."""
STICKY = 0.9
"""A replica goes only when the others would then be this share of the wanted load or less."""


class Context(Protocol):
    """The part of Ray's AutoscalingContext that decides."""

    current_num_replicas: int
    total_num_requests: float
    aggregated_metrics: Mapping[str, Mapping[Any, float]] | None


class LoadPolicy:
    """As many replicas as bring each one's load to the target. Delays and bounds are applied by Ray around it.

    Args:
        target: Wanted load of a replica, in (0, 1].
        tick_p95_ms: When the ticks of the replicas take longer, one more is wanted; None = they may.
    """

    def __init__(self, target: float, tick_p95_ms: float | None = None) -> None:
        self._target = target
        self._tick_p95_ms = tick_p95_ms

    def __call__(self, context: Context) -> tuple[int, dict[str, Any]]:
        """Replicas that are wanted, and no state to be kept."""
        current = context.current_num_replicas
        if current == 0:
            return (1 if context.total_num_requests > 0 else 0), {}
        metrics = context.aggregated_metrics or {}
        total = sum(metrics.get(LOAD, {}).values())
        wanted = math.ceil(total / self._target - 1e-6)
        if wanted == 0 and context.total_num_requests > 0:
            wanted = 1
        if 0 < wanted < current and total > STICKY * self._target * (current - 1):
            wanted = current
        ticks = metrics.get(TICK_P95_MS, {}).values()
        if self._tick_p95_ms is not None and ticks:
            mean = sum(ticks) / len(ticks)
            if mean > self._tick_p95_ms:
                wanted = max(wanted, current + 1)
            elif mean > STICKY * self._tick_p95_ms:
                wanted = max(wanted, current)
        return wanted, {}
