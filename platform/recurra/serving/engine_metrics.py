"""What the engine counts, each child of the table looked up once."""

from __future__ import annotations

from typing import TYPE_CHECKING

from recurra.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from recurra.serving.engine import Load


class EngineMetrics:
    """The serving rows of `telemetry/table.py` that ticks change.

    Args:
        metrics: With the label `model` bound.
    """

    def __init__(self, metrics: Metrics) -> None:
        self._step_time = metrics.histogram("recurra_step_time_seconds")
        self._step_batch = metrics.histogram("recurra_step_batch_size")
        self._encode_time = metrics.histogram("recurra_encode_time_seconds")
        self._encode_batch = metrics.histogram("recurra_encode_batch_size")
        self._padded = metrics.counter("recurra_encode_padded_tokens_total")
        self._queue = {
            path: metrics.histogram("recurra_request_queue_time_seconds", path=path) for path in ("step", "encode")
        }
        self._first_token = metrics.histogram("recurra_time_to_first_token_seconds")
        self._between_tokens = metrics.histogram("recurra_inter_token_latency_seconds")
        self._prompt_steps = metrics.histogram("recurra_request_prompt_tokens")
        self._generated = metrics.histogram("recurra_request_generation_tokens")
        self._prompt_total = metrics.counter("recurra_prompt_tokens_total")
        self._generated_total = metrics.counter("recurra_generation_tokens_total")
        self._finished = {
            reason: metrics.counter("recurra_request_success_total", finished_reason=reason)
            for reason in ("stop", "length", "complete", "cancelled")
        }
        self._running = metrics.gauge("recurra_num_requests_running")
        self._waiting = metrics.gauge("recurra_num_requests_waiting")
        self._slots_used = metrics.gauge("recurra_slots_used")
        self._slots_limit = metrics.gauge("recurra_slots_limit")
        self._load = metrics.gauge("recurra_engine_load_ratio")

    def step(self, seconds: float, batch: int) -> None:
        self._step_time.observe(seconds)
        self._step_batch.observe(batch)

    def encode(self, seconds: float, batch: int, padded: int) -> None:
        self._encode_time.observe(seconds)
        self._encode_batch.observe(batch)
        if padded:
            self._padded.inc(padded)

    def began(self, path: str, queued_s: list[float]) -> None:
        self._queue[path].observe_all(queued_s)

    def first_tokens(self, seconds: list[float]) -> None:
        self._first_token.observe_all(seconds)

    def later_tokens(self, seconds: float, count: int) -> None:
        """`count` sequences got their next token so long after the last one."""
        self._between_tokens.observe(seconds, count)

    def ended(self, reasons: list[str], prompt_steps: list[int], generated: list[int]) -> None:
        """For each sequence that ended why, how many inputs it had, and how many tokens it generated."""
        for reason in set(reasons):
            self.finished(reason, reasons.count(reason))
        self._prompt_steps.observe_all(prompt_steps)
        self._prompt_total.inc(sum(prompt_steps))
        some = [count for count in generated if count]
        if some:
            self._generated.observe_all(some)
            self._generated_total.inc(sum(some))

    def finished(self, reason: str, count: int = 1) -> None:
        self._finished[reason].inc(count)

    def load(self, load: Load) -> None:
        self._running.set(load.busy)
        self._waiting.set(load.waiting)
        self._slots_used.set(load.busy)
        self._slots_limit.set(load.slots)
        self._load.set(load.ratio)
