"""When the model is evaluated."""

from __future__ import annotations

from recurra.data.batch import Batch
from recurra.training.callbacks.base import Callback
from recurra.training.step import StepResult
from recurra.training.trainer import Due, Trainer


class EvaluateRegularly(Callback):
    """Every `train.evaluate_every` updates, or else at the end of each epoch."""

    def __init__(self) -> None:
        self._epoch: int | None = None
        self._batches = 0

    def stepped(self, trainer: Trainer, batch: Batch, result: StepResult) -> Due:
        if trainer.evaluation is None:
            return Due()
        every = trainer.config.evaluate_every
        if every is not None:
            return Due(evaluate=trainer.progress.step % every == 0)
        if batch.epoch != self._epoch:
            self._epoch, self._batches = batch.epoch, trainer.train.batches_in_epoch(batch.epoch)
        return Due(evaluate=batch.step_in_epoch + 1 == self._batches)
