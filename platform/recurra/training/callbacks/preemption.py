"""Checkpoints before a node that is taken away is gone."""

from __future__ import annotations

import time
from collections.abc import Callable

from recurra.training.callbacks.base import Callback
from recurra.training.step import Wishes
from recurra.training.trainer import Trainer

AGAIN_S = 5.0
"""Between two checkpoints while the node is still there: steps behind the last one will be lost."""
COSTS = 10.0
"""A checkpoint that took t seconds is not made again before COSTS * t have passed, nor later than 2 t before the end."""


class SaveBeforePreemption(Callback):
    """From the notice to the end, as many checkpoints as do not get in the way of the steps between them.

    Args:
        deadline: When a node of the run will go, in seconds since 1970; None while none is known to.
        clock: Seconds since 1970.
    """

    def __init__(self, deadline: Callable[[], float | None], clock: Callable[[], float] = time.time) -> None:
        self._deadline = deadline
        self._clock = clock
        self._saved_s: float | None = None
        self._cost_s = 0.0

    def wishes(self) -> Wishes:
        deadline_s = self._deadline()
        if deadline_s is None:
            return Wishes()
        if self._saved_s is None:
            return Wishes(save=True)
        now_s = self._clock()
        due_s = self._saved_s + max(AGAIN_S, COSTS * self._cost_s)
        return Wishes(save=due_s <= now_s <= deadline_s - 2 * self._cost_s)

    def saved(self, trainer: Trainer, size_bytes: int, seconds: float) -> None:
        if self._deadline() is not None:
            self._saved_s, self._cost_s = self._clock(), seconds
