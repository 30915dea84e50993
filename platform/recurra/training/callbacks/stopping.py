"""When a run ends: all steps done, time used up, no improvement any more, or asked to."""

from __future__ import annotations

import time
from collections.abc import Callable

from recurra.data.batch import Batch
from recurra.training.callbacks.base import Callback
from recurra.training.evaluation import Evaluation
from recurra.training.step import StepResult, Wishes
from recurra.training.trainer import Due, Trainer


class StopWhenDone(Callback):
    """Ends the run by `train.steps`, `train.epochs` and `train.stop`, evaluated and saved.

    Args:
        clock: Seconds from any origin, which the duration of the run is measured by.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._start_s = 0.0
        self._limit_s: float | None = None

    def started(self, trainer: Trainer) -> None:
        self._start_s = self._clock() - trainer.progress.elapsed_s
        # Clocks of ranks differ, so that one rank decides.
        self._limit_s = trainer.config.stop.max_duration if trainer.ranks.rank == 0 else None

    def wishes(self) -> Wishes:
        return Wishes(stop=self._limit_s is not None and self._clock() - self._start_s >= self._limit_s)

    def stepped(self, trainer: Trainer, batch: Batch, result: StepResult) -> Due:
        trainer.progress.elapsed_s = self._clock() - self._start_s
        if trainer.progress.step >= trainer.steps:
            return self._end(trainer, f"all {trainer.steps} steps are done")
        if result.wishes.stop:
            return self._end(trainer, "train.stop.max_duration is reached")
        return Due()

    def evaluated(self, trainer: Trainer, evaluation: Evaluation, improved: bool) -> Due:
        patience = trainer.config.stop.patience
        if patience is not None and trainer.progress.evaluations_since_best >= patience:
            name = trainer.update.task.objective[0]
            return Due(save=True, end=f"{name} did not improve in {patience} evaluations")
        return Due()

    def _end(self, trainer: Trainer, reason: str) -> Due:
        return Due(evaluate=trainer.evaluation is not None, save=True, end=reason)
