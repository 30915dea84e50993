"""The end of a run: the best checkpoint is evaluated on all data, published, and reported on."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

from recurra.config.load import dump
from recurra.errors import ConfigError, NotFoundError
from recurra.models.sequence import Model, SequenceModel
from recurra.models.weights import save_weights
from recurra.registry.bundle import BundleParts
from recurra.registry.card import card_of
from recurra.registry.registry import Registry
from recurra.storage.store import Store
from recurra.training.evaluation import Evaluation
from recurra.training.events import RunEvent
from recurra.training.quantisation import measure_int8
from recurra.training.reach import measure_reach
from recurra.training.report.log import REACH, read_log
from recurra.training.report.page import REPORT, write_report
from recurra.training.result import RunResult
from recurra.training.run import TrainRun
from recurra.training.start import DATA, ENVIRONMENT
from recurra.training.tables import write_tables
from recurra.training.trainer import Trainer
from recurra.training.weightings import trace_heads

RESULT = "result.json"
SAMPLES = "samples.json"
HEADS = "heads.json"


def finish(
    run: TrainRun, trainer: Trainer, store: Store, reason: str, emit: Callable[[RunEvent], None]
) -> RunResult | None:
    """All ranks take part; gives the result on rank 0, None on the others."""
    step = trainer.progress.best_step or trainer.progress.step
    if step != trainer.progress.step:
        trainer.load_weights(step)
    evaluation = _whole_evaluation(trainer, step, emit)
    with trainer.update.published() as model:
        if trainer.ranks.rank:
            return None
        return _leave(run, trainer, model, store, (reason, step, evaluation), emit)


def _leave(
    run: TrainRun,
    trainer: Trainer,
    model: Model,
    store: Store,
    found: tuple[str, int, Evaluation],
    emit: Callable[[RunEvent], None],
) -> RunResult:
    """What a run that is over has in the store, and in the registry; `model` is the best one."""
    reason, step, evaluation = found
    _keep_reach(trainer, model, store)
    store.write(SAMPLES, json.dumps(evaluation.samples, indent=1).encode())
    if heads := _heads(trainer, model):
        store.write(HEADS, json.dumps(heads, separators=(",", ":")).encode())
    result = RunResult(
        name=run.name,
        reason=reason,
        steps=trainer.progress.step,
        tokens=trainer.progress.tokens,
        metrics=evaluation.metrics,
        best_step=step,
        best_checkpoint=f"checkpoints/{step:08d}",
        report=f"{store.url}/{REPORT}",
        duration_s=trainer.progress.elapsed_s,
    )
    if run.publish is not None:
        result = replace(result, published=_publish(run, trainer, model, store, result, emit))
        emit(RunEvent("publish", f"{run.publish.model} {run.publish.alias or ''}".rstrip(), step))
    store.write(RESULT, json.dumps(result.to_json(), indent=1).encode())
    log = read_log(store)
    write_tables(store, log)
    write_report(store, log)
    return result


def _whole_evaluation(trainer: Trainer, step: int, emit: Callable[[RunEvent], None]) -> Evaluation:
    if trainer.evaluation is None:
        return Evaluation({})
    if trainer.evaluated_whole is not None and trainer.evaluated_whole[0] == step:
        return trainer.evaluated_whole[1]
    emit(RunEvent("evaluate", "the best checkpoint on all evaluation data", step))
    return trainer.evaluate(lambda done: None, whole=True)


def _heads(trainer: Trainer, model: Model) -> dict[str, Any] | None:
    """What the heads of an NTM do on a sequence of the evaluation data."""
    if trainer.evaluation is None or model.config.cell != "ntm":
        return None
    batches = trainer.evaluation()
    try:
        return trace_heads(trainer.update.task, model, batches)
    finally:
        batches.close()


def _keep_reach(trainer: Trainer, model: Model, store: Store) -> None:
    """Of the first evaluation batch that has something to say of it; without evaluation data there is none."""
    if trainer.evaluation is None or not isinstance(model, SequenceModel):
        return
    batches = trainer.evaluation()
    try:
        measured = (measure_reach(trainer.update.task, model, batch) for batch in batches)
        if (reach := next(filter(None, measured), None)) is not None:
            store.write(REACH, json.dumps(reach.to_json()).encode())
    finally:
        batches.close()


def _int8(trainer: Trainer, model: Model, emit: Callable[[RunEvent], None]) -> dict[str, Any]:
    """What goes into the card of it; nothing where this model, after all, has no such steps here."""
    assert trainer.evaluation is not None
    batches = trainer.evaluation()
    try:
        return {"int8": measure_int8(trainer.update.task, model, batches)}
    except ConfigError as exc:
        emit(RunEvent("warning", f"publish.int8 was left out: {exc}"))
        return {}
    finally:
        batches.close()


def _publish(
    run: TrainRun, trainer: Trainer, model: Model, store: Store, result: RunResult, emit: Callable[[RunEvent], None]
) -> dict[str, str]:
    """Put the model as it is now into the registry."""
    assert run.publish is not None
    task, data = trainer.update.task.calibrated(result.metrics), _read(store, DATA)
    card = card_of(task, model, data, run.train.truncated_bptt)
    if run.publish.int8:
        card |= _int8(trainer, model, emit)
    parts = BundleParts(
        task=task.describe(),
        model=dump(run.model),
        shape=asdict(model.shape),
        state_spec=model.state_spec.to_json(),
        metrics=result.metrics,
        data_digest=data["train"]["digest"],
        lineage={
            "run": run.name,
            "run_url": store.url,
            "step": result.best_step,
            "tokens": result.tokens,
            **_read(store, ENVIRONMENT),
        },
        card=card,
    )
    digest = Registry(run.publish.registry).publish(
        run.publish.model,
        parts,
        save_weights(model),
        run.publish.alias,
        reason=f"run {run.name}, step {result.best_step}",
    )
    return {"model": run.publish.model, "digest": digest, "alias": run.publish.alias or ""}


def _read(store: Store, key: str) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(store.read(key))
    except NotFoundError:
        return {}
    return content
