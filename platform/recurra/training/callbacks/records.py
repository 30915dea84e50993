"""The run's own log in the store: one record a step, an evaluation, a checkpoint, an attempt; what the report is made of.

    metrics/000000000101.jsonl    steps 101 to the next checkpoint, written by its thread just before its commit
    metrics/tail.jsonl            steps since then, rewritten now and then by a thread for whoever follows the run
    events/<attempt>.jsonl        what happened in one attempt: start, evaluations, checkpoints, end

A resume drops the step records behind its checkpoint, since the steps are made again: the log holds each step once.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from recurra.data.batch import Batch
from recurra.errors import StorageError
from recurra.storage.store import Store
from recurra.training.callbacks.base import Callback
from recurra.training.evaluation import Evaluation
from recurra.training.in_flight import Saved
from recurra.training.outbox import Outbox
from recurra.training.step import StepResult
from recurra.training.trainer import Due, Trainer

TAIL = "metrics/tail.jsonl"


class KeepRecords(Callback):
    """Writes the log; on rank 0 only, since all numbers are the same on all ranks.

    Args:
        store: Of the run.
        attempt: Names the file of this attempt's events.
        tail_s: Seconds between two writes of the tail.
        clock: Seconds since 1970.
    """

    def __init__(
        self, store: Store, *, attempt: str, tail_s: float = 10.0, clock: Callable[[], float] = time.time
    ) -> None:
        self._store = store
        self._outbox = Outbox(store)
        self._attempt = attempt
        self._tail_s = tail_s
        self._clock = clock
        self._first_step = 1
        self._steps: list[str] = []
        self._events: list[str] = []
        self._last_s = 0.0
        self._written_s = 0.0
        self._wait_s = 0.0

    def started(self, trainer: Trainer) -> None:
        self._first_step = trainer.progress.step + 1
        lost_steps = self._drop_lost_steps(trainer.progress.step)
        self._last_s = self._clock()
        self._wait_s = trainer.train.wait_s
        self._note(
            "started",
            trainer.progress.step,
            workers=trainer.ranks.size,
            steps=trainer.steps,
            resumed_from=trainer.resumed_from,
            lost_steps=lost_steps,
            restore_seconds=round(trainer.restore_s, 6),
        )
        self._write_events()

    def stepped(self, trainer: Trainer, batch: Batch, result: StepResult) -> Due:
        now_s, wait_s = self._clock(), trainer.train.wait_s
        record: dict[str, Any] = {
            "step": trainer.progress.step,
            "epoch": batch.epoch,
            "loss": _finite(result.loss),
            "items": result.count,
            "learning_rate": result.learning_rate,
            "gradient_norm": _finite(result.gradient_norm),
            "tokens": result.tokens,
            "padded_tokens": result.padded_tokens,
            "time": round(now_s, 3),
            "seconds": round(now_s - self._last_s, 6),
            "wait_seconds": round(wait_s - self._wait_s, 6),
        }
        if trainer.curriculum is not None:
            record["stage"] = trainer.curriculum.stage
        if result.layer_norms:
            record["layer_norms"] = {name: _finite(value) for name, value in result.layer_norms.items()}
        self._last_s, self._wait_s = now_s, wait_s
        self._steps.append(_line(record))
        if now_s - self._written_s >= self._tail_s:
            self._write_tail()
        return Due()

    def evaluated(self, trainer: Trainer, evaluation: Evaluation, improved: bool) -> Due:
        self._note("evaluated", trainer.progress.step, metrics=evaluation.metrics, improved=improved)
        return Due()

    def saving(self, trainer: Trainer) -> Callable[[], None]:
        # Before the commit: a committed checkpoint has all records up to its step.
        key, lines = f"metrics/{self._first_step:012d}.jsonl", "".join(self._steps).encode()
        self._steps.clear()
        self._first_step = trainer.progress.step + 1
        return lambda: self._store.write(key, lines)

    def copied(self, trainer: Trainer, blocked_s: float) -> None:
        self._last_s = self._clock()

    def saved(self, trainer: Trainer, saved: Saved) -> None:
        self._note(
            "saved",
            saved.step,
            time_s=saved.moment_s,
            size_bytes=saved.size_bytes,
            seconds=round(saved.durable_s, 6),
            blocked_seconds=round(saved.blocked_s, 6),
            steps_behind=trainer.progress.step - saved.step,
        )
        self._write_tail()

    def finished(self, trainer: Trainer, reason: str) -> None:
        self._note("finished", trainer.progress.step, reason=reason)
        self._write_events()
        self._outbox.flush()
        self._store.delete(TAIL)

    def failed(self, trainer: Trainer, error: BaseException) -> None:
        self._note("failed", trainer.progress.step, error=f"{type(error).__name__}: {error}")
        # What ended the run matters more than a store that does not answer now.
        with suppress(StorageError):
            self._write_events()
            self._outbox.flush()

    def _drop_lost_steps(self, step: int) -> int:
        """Delete the records behind a checkpoint; gives how many updates the attempt before made there, as far as it told.

        One that was killed told of its steps `tail_s` seconds before, at most; one that failed, to the last step.
        """
        reached = step
        for info in list(self._store.list("metrics/")):
            if info.key == TAIL or _first_step_of(info.key) > step:
                reached = max([reached, *(json.loads(line)["step"] for line in self._lines(info.key)[-1:])])
                self._store.delete(info.key)
        if attempts := sorted(self._store.list("events/"), key=lambda info: info.modified_s):
            reached = max([reached, *(json.loads(line)["step"] for line in self._lines(attempts[-1].key))])
        return reached - step

    def _lines(self, key: str) -> list[bytes]:
        return self._store.read(key).splitlines()

    def _note(self, event: str, step: int, *, time_s: float | None = None, **fields: Any) -> None:
        moment_s = self._clock() if time_s is None else time_s
        record = {"event": event, "step": step, "time": round(moment_s, 3), **fields}
        self._events.append(_line({"attempt": self._attempt, **record}))

    def _write_tail(self) -> None:
        self._outbox.put(TAIL, "".join(self._steps).encode())
        self._write_events()

    def _write_events(self) -> None:
        self._written_s = self._clock()
        self._outbox.put(f"events/{self._attempt}.jsonl", "".join(self._events).encode())


def _first_step_of(key: str) -> int:
    return int(key.removeprefix("metrics/").removesuffix(".jsonl"))


def _finite(value: float) -> float | None:
    """JSON has no NaN."""
    return value if math.isfinite(value) else None


def _line(record: dict[str, Any]) -> str:
    return json.dumps(record, separators=(",", ":")) + "\n"
