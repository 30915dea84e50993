"""The end of a run: the best checkpoint is evaluated on all data, published, and reported on."""

from __future__ import annotations

import json
from collections.abc import Callable

from recurra.storage.store import Store
from recurra.training.evaluation import Evaluation
from recurra.training.events import RunEvent
from recurra.training.result import RunResult
from recurra.training.run import TrainRun
from recurra.training.trainer import Trainer

RESULT = "result.json"
SAMPLES = "samples.json"


def finish(
    run: TrainRun, trainer: Trainer, store: Store, reason: str, emit: Callable[[RunEvent], None]
) -> RunResult | None:
    """All ranks take part; gives the result on rank 0, None on the others."""
    step = trainer.progress.best_step or trainer.progress.step
    if step != trainer.progress.step:
        trainer.load_weights(step)
    evaluation = _whole_evaluation(trainer, step, emit)
    if trainer.ranks.rank:
        return None
    result = RunResult(
        name=run.name,
        reason=reason,
        steps=trainer.progress.step,
        tokens=trainer.progress.tokens,
        metrics=evaluation.metrics,
        best_step=step,
        best_checkpoint=f"checkpoints/{step:08d}",
        published=None,
        report=f"{store.url}/report.html",
        duration_s=trainer.progress.elapsed_s,
    )
    store.write(SAMPLES, json.dumps(evaluation.samples, indent=1).encode())
    store.write(RESULT, json.dumps(result.to_json(), indent=1).encode())
    return result


def _whole_evaluation(trainer: Trainer, step: int, emit: Callable[[RunEvent], None]) -> Evaluation:
    if trainer.evaluation is None:
        return Evaluation({})
    if trainer.evaluated_whole is not None and trainer.evaluated_whole[0] == step:
        return trainer.evaluated_whole[1]
    emit(RunEvent("evaluate", "the best checkpoint on all evaluation data", step))
    return trainer.evaluate(lambda done: None, whole=True)
