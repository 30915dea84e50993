"""Tells whoever follows the run how far it is, at least every few seconds."""

from __future__ import annotations

import time
from collections.abc import Callable

from recurra.data.batch import Batch
from recurra.training.callbacks.base import Callback
from recurra.training.evaluation import Evaluation
from recurra.training.events import Phase, RunEvent
from recurra.training.in_flight import Saved
from recurra.training.step import StepResult
from recurra.training.trainer import Due, Trainer


class TellProgress(Callback):
    """Emits events; on rank 0 only.

    Args:
        emit: Takes each event; must not block.
        every_s: Seconds between two events while nothing but steps happens.
        clock: Seconds from any origin.
    """

    def __init__(
        self, emit: Callable[[RunEvent], None], *, every_s: float = 5.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._emit = emit
        self._every_s = every_s
        self._clock = clock
        self._last_s = 0.0
        self._steps = 0
        self._tokens = 0
        self._loss = 0.0
        self._wait_s = 0.0

    def started(self, trainer: Trainer) -> None:
        step = trainer.resumed_from
        workers = f"{trainer.ranks.size} worker{'s' if trainer.ranks.size > 1 else ''}"
        text = f"{workers}, from the beginning" if step is None else f"{workers}, going on from step {step}"
        self._tell(trainer, "start" if step is None else "restart", text=text)
        self._begin_span(trainer)

    def stepped(self, trainer: Trainer, batch: Batch, result: StepResult) -> Due:
        self._steps += 1
        self._tokens += result.tokens
        self._loss += result.loss
        if result.skipped:
            why = f"its loss of {result.loss:.4g} is a spike" if result.spike else "its gradient is not finite"
            self._tell(trainer, "warning", text=f"update skipped: {why}")
        span_s = self._clock() - self._last_s
        if span_s >= self._every_s or trainer.progress.step == 1:
            left = trainer.steps - trainer.progress.step
            numbers = {
                "loss": self._loss / self._steps,
                "tokens_per_s": self._tokens / max(span_s, 1e-9),
                "data_wait": min(1.0, (trainer.train.wait_s - self._wait_s) / max(span_s, 1e-9)),
                "eta_s": left * span_s / self._steps,
            }
            self._tell(trainer, "train", numbers=numbers)
            self._begin_span(trainer)
        return Due()

    def evaluating(self, trainer: Trainer, done: int) -> None:
        if self._clock() - self._last_s >= self._every_s:
            self._tell(trainer, "evaluate", text=f"batch {done}")
            self._begin_span(trainer)

    def evaluated(self, trainer: Trainer, evaluation: Evaluation, improved: bool) -> Due:
        self._tell(trainer, "evaluate", numbers=evaluation.metrics, text="best so far" if improved else "")
        self._begin_span(trainer)
        return Due()

    def saved(self, trainer: Trainer, saved: Saved) -> None:
        held_up = f"the loop stood still for {1000 * saved.blocked_s:.0f} ms"
        text = f"step {saved.step} saved, {saved.size_bytes / 1e6:.1f} MB in {saved.durable_s:.2f} s; {held_up}"
        self._tell(trainer, "checkpoint", text=text)

    def finished(self, trainer: Trainer, reason: str) -> None:
        self._tell(trainer, "end", text=reason)

    def _tell(self, trainer: Trainer, phase: Phase, *, text: str = "", numbers: dict[str, float] | None = None) -> None:
        self._emit(RunEvent(phase, text, trainer.progress.step, trainer.steps, numbers or {}))

    def _begin_span(self, trainer: Trainer) -> None:
        self._last_s = self._clock()
        self._wait_s = trainer.train.wait_s
        self._steps = self._tokens = 0
        self._loss = 0.0
