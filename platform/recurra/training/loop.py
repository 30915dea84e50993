"""The training loop. Every event of a run is on this page; what happens at each is in callbacks/."""

from __future__ import annotations

import time
from collections.abc import Sequence

from recurra.training.callbacks.base import Callback
from recurra.training.evaluation import Evaluation
from recurra.training.step import Wishes
from recurra.training.trainer import Due, Trainer


def run_loop(trainer: Trainer, callbacks: Sequence[Callback]) -> str:
    """Train from the newest checkpoint to the end of the run.

    Args:
        trainer: All ranks run the same loop; whatever they decide together they decide equally.
        callbacks: Told of each event in this order.

    Returns:
        Why the run ended.
    """
    try:
        trainer.restore()
        for callback in callbacks:
            callback.started(trainer)
        reason = "all steps were already done" if trainer.progress.step >= trainer.steps else "the data ended"
        for batch in trainer.batches():
            wishes = _together([callback.wishes() for callback in callbacks])
            result = trainer.step(batch, wishes)
            due = Due()
            for callback in callbacks:
                due |= callback.stepped(trainer, batch, result)
            if due.evaluate:
                due |= _evaluate(trainer, callbacks, whole=due.end is not None)
            if due.save:
                _save(trainer, callbacks)
            if due.end:
                reason = due.end
                break
        for callback in callbacks:
            callback.finished(trainer, reason)
        return reason
    except BaseException as exc:
        for callback in callbacks:
            callback.failed(trainer, exc)
        raise
    finally:
        trainer.close()
        for callback in reversed(callbacks):
            callback.closed()


def _together(wishes: list[Wishes]) -> Wishes:
    return Wishes(any(wish.save for wish in wishes), any(wish.stop for wish in wishes))


def _evaluate(trainer: Trainer, callbacks: Sequence[Callback], *, whole: bool) -> Due:
    def tell(done: int) -> None:
        for callback in callbacks:
            callback.evaluating(trainer, done)

    evaluation: Evaluation = trainer.evaluate(tell, whole=whole)
    improved = trainer.progress.judge(evaluation.metrics, trainer.update.task.objective)
    due = Due(save=improved)
    for callback in callbacks:
        due |= callback.evaluated(trainer, evaluation, improved)
    return due


def _save(trainer: Trainer, callbacks: Sequence[Callback]) -> None:
    for callback in callbacks:
        callback.saving(trainer)
    start_s = time.perf_counter()
    size_bytes = trainer.save()
    for callback in callbacks:
        callback.saved(trainer, size_bytes, time.perf_counter() - start_s)
