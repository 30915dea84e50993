"""Numbers of the run for Prometheus; names are those of telemetry's table."""

from __future__ import annotations

import time
from collections.abc import Callable

from recurra.data.batch import Batch
from recurra.telemetry.metrics import Metrics
from recurra.training.callbacks.base import Callback
from recurra.training.evaluation import Evaluation
from recurra.training.in_flight import Saved
from recurra.training.step import StepResult
from recurra.training.trainer import Due, Trainer

_RECENT = 0.1
"""Weight of the newest step in the moving averages of throughput and data wait."""


class ExportMetrics(Callback):
    """Keeps the process's training metrics up to date. Every rank counts its own data; rank 0 speaks for the run.

    Args:
        metrics: With the label `run` bound.
        cause: Why this attempt began, when it is not the first one: failure, preemption or resize.
        clock: Seconds from any origin.
    """

    def __init__(
        self, metrics: Metrics, *, cause: str | None = None, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self._metrics = metrics
        self._cause = cause
        self._clock = clock
        self._last_s = 0.0
        self._wait_s = 0.0
        self._speed = 0.0
        self._wait_share = 0.0
        self._evaluating_since: float | None = None
        self._durable_step = 0

    def started(self, trainer: Trainer) -> None:
        self._durable_step = trainer.resumed_from or 0
        self._last_s, self._wait_s = self._clock(), trainer.train.wait_s
        if trainer.ranks.rank == 0:
            self._metrics.gauge("recurra_train_workers").set(trainer.ranks.size)
            # There from the start at 0: increase() does not see the first count of a series that appears with it.
            for reason in ("not_finite", "spike"):
                self._metrics.counter("recurra_train_steps_skipped_total", reason=reason)
            for cause in ("failure", "preemption", "resize"):
                self._metrics.counter("recurra_train_restarts_total", cause=cause)
            if trainer.resumed_from is not None:
                self._metrics.histogram("recurra_train_checkpoint_seconds", operation="restore").observe(
                    trainer.restore_s
                )
            if self._cause is not None:
                self._metrics.counter("recurra_train_restarts_total", cause=self._cause).inc()

    def stepped(self, trainer: Trainer, batch: Batch, result: StepResult) -> Due:
        now_s, wait_s = self._clock(), trainer.train.wait_s
        span_s, waited_s = max(now_s - self._last_s, 1e-9), wait_s - self._wait_s
        self._last_s, self._wait_s = now_s, wait_s
        own = int(batch.lengths.sum())
        self._metrics.counter("recurra_train_tokens_total").inc(own)
        self._metrics.counter("recurra_train_sequences_total").inc(int((batch.ids >= 0).sum()))
        self._metrics.counter("recurra_train_padded_tokens_total").inc(max(0, batch.reset.size - own))
        self._metrics.counter("recurra_train_data_wait_seconds_total").inc(max(0.0, waited_s))
        if trainer.ranks.rank == 0:
            self._speed += _RECENT * (result.tokens / span_s - self._speed) if self._speed else result.tokens / span_s
            self._wait_share += _RECENT * (min(1.0, waited_s / span_s) - self._wait_share)
            self._speak(trainer, result, span_s)
        return Due()

    def evaluating(self, trainer: Trainer, done: int) -> None:
        if done == 1:
            self._evaluating_since = self._clock()

    def evaluated(self, trainer: Trainer, evaluation: Evaluation, improved: bool) -> Due:
        if trainer.ranks.rank == 0:
            for name, value in evaluation.metrics.items():
                self._metrics.gauge("recurra_train_metric", split="eval", metric=name).set(value)
            if self._evaluating_since is not None:
                seconds = self._clock() - self._evaluating_since
                self._metrics.histogram("recurra_train_evaluation_seconds").observe(seconds)
        self._last_s = self._clock()
        return Due()

    def copied(self, trainer: Trainer, blocked_s: float) -> None:
        if trainer.ranks.rank == 0:
            self._metrics.histogram("recurra_train_checkpoint_seconds", operation="blocked").observe(blocked_s)
        self._last_s = self._clock()

    def saved(self, trainer: Trainer, saved: Saved) -> None:
        self._durable_step = saved.step
        if trainer.ranks.rank == 0:
            self._metrics.histogram("recurra_train_checkpoint_seconds", operation="save").observe(saved.durable_s)
            self._metrics.gauge("recurra_train_checkpoint_bytes").set(saved.size_bytes)
            self._metrics.gauge("recurra_train_steps_at_risk").set(trainer.progress.step - saved.step)

    def _speak(self, trainer: Trainer, result: StepResult, span_s: float) -> None:
        gauge, counter = self._metrics.gauge, self._metrics.counter
        step, steps = trainer.progress.step, trainer.steps
        gauge("recurra_train_loss").set(result.loss)
        gauge("recurra_train_step").set(step)
        gauge("recurra_train_steps_at_risk").set(step - self._durable_step)
        gauge("recurra_train_epoch").set(trainer.progress.epoch)
        gauge("recurra_train_progress_ratio").set(step / steps)
        gauge("recurra_train_learning_rate").set(result.learning_rate)
        gauge("recurra_train_tokens_per_second").set(self._speed)
        gauge("recurra_train_eta_seconds").set((steps - step) * result.tokens / max(self._speed, 1e-9))
        gauge("recurra_train_data_wait_ratio").set(self._wait_share)
        gauge("recurra_train_padding_ratio").set(1 - result.tokens / max(result.padded_tokens, 1))
        gauge("recurra_train_gradient_norm", layer="all").set(result.gradient_norm)
        for name, norm in result.layer_norms.items():
            gauge("recurra_train_gradient_norm", layer=name).set(norm)
        self._metrics.histogram("recurra_train_step_seconds").observe(span_s)
        counter("recurra_train_steps_total").inc()
        if result.skipped:
            counter("recurra_train_steps_skipped_total", reason="spike" if result.spike else "not_finite").inc()
        elif (limit := trainer.config.gradient_clip.norm) is not None and result.gradient_norm > limit:
            counter("recurra_train_gradients_clipped_total").inc()
