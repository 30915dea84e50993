"""The training loop. Every event of a run is on this page; what happens at each is in callbacks/."""

from __future__ import annotations

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
            _tell_of_saved(trainer, callbacks)
            if due.end:
                reason = due.end
                break
        trainer.checkpoints.wait()
        _tell_of_saved(trainer, callbacks)
        for callback in callbacks:
            callback.finished(trainer, reason)
        return reason
    except BaseException as exc:
        # What is in flight is what the next attempt goes on from.
        trainer.checkpoints.settle()
        _tell_of_saved(trainer, callbacks)
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
    writes = [write for callback in callbacks if (write := callback.saving(trainer)) is not None]

    def before_commit() -> None:
        for write in writes:
            write()

    blocked_s = trainer.save(before_commit)
    for callback in callbacks:
        callback.copied(trainer, blocked_s)


def _tell_of_saved(trainer: Trainer, callbacks: Sequence[Callback]) -> None:
    """Durable ones are told of between two updates, by the thread that everything else is told by."""
    for saved in trainer.checkpoints.news():
        for callback in callbacks:
            callback.saved(trainer, saved)
