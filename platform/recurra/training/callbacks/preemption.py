"""Checkpoints before a node that is taken away is gone."""

from __future__ import annotations

import time
from collections.abc import Callable

from recurra.training.callbacks.base import Callback
from recurra.training.in_flight import Saved
from recurra.training.step import Wishes
from recurra.training.trainer import Trainer

AGAIN_S = 5.0
"""Between two checkpoints while the node is still there: steps behind the last one will be lost."""
COSTS = 10.0
"""A checkpoint that held the loop up for t seconds is not made again before COSTS * t have passed."""
RESERVE = 2.0
"""One that was durable after t seconds is not begun later than RESERVE * t before the end."""


class SaveBeforePreemption(Callback):
    """From the notice to the end, as many checkpoints as do not get in the way of the steps between them.

    Args:
        deadline: When a node of the run will go, in seconds since 1970; None while none is known to.
        clock: Seconds since 1970.
    """

    def __init__(self, deadline: Callable[[], float | None], clock: Callable[[], float] = time.time) -> None:
        self._deadline = deadline
        self._clock = clock
        self._begun_s: float | None = None
        self._in_flight = False
        self._blocked_s = 0.0
        self._durable_s = 0.0

    def wishes(self) -> Wishes:
        deadline_s = self._deadline()
        if deadline_s is None:
            return Wishes()
        if self._begun_s is None:
            return Wishes(save=True)
        now_s = self._clock()
        due_s = self._begun_s + max(AGAIN_S, COSTS * self._blocked_s)
        return Wishes(save=not self._in_flight and due_s <= now_s <= deadline_s - RESERVE * self._durable_s)

    def copied(self, trainer: Trainer, blocked_s: float) -> None:
        if self._deadline() is not None:
            self._begun_s, self._in_flight, self._blocked_s = self._clock(), True, blocked_s

    def saved(self, trainer: Trainer, saved: Saved) -> None:
        self._in_flight, self._durable_s = False, saved.durable_s
