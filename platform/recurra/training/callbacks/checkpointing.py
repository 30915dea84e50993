"""When a checkpoint is written."""

from __future__ import annotations

import time
from collections.abc import Callable

from recurra.data.batch import Batch
from recurra.training.callbacks.base import Callback
from recurra.training.step import StepResult, Wishes
from recurra.training.trainer import Due, Trainer


class SaveRegularly(Callback):
    """Every `train.checkpoint_every` updates or seconds, and whenever a rank wishes it.

    One that failed in the background is followed by another at once, since that is where all ranks raise the error.

    Args:
        clock: Seconds from any origin. Ranks read it at different moments, so time makes a wish and not a decision.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._interval_s: float | None = None
        self._last_s = 0.0
        self._trainer: Trainer | None = None

    def started(self, trainer: Trainer) -> None:
        self._interval_s = trainer.config.checkpoint_every.seconds if trainer.ranks.rank == 0 else None
        self._last_s = self._clock()
        self._trainer = trainer

    def wishes(self) -> Wishes:
        failed = self._trainer is not None and self._trainer.checkpoints.failed
        due = self._interval_s is not None and self._clock() - self._last_s >= self._interval_s
        return Wishes(save=failed or due)

    def stepped(self, trainer: Trainer, batch: Batch, result: StepResult) -> Due:
        every = trainer.config.checkpoint_every.steps
        return Due(save=result.wishes.save or (every is not None and trainer.progress.step % every == 0))

    def copied(self, trainer: Trainer, blocked_s: float) -> None:
        self._last_s = self._clock()
