"""The one table of every metric: name, kind, labels, help, buckets. The unit is part of the name.

Names are vLLM's with underscores (Ray and Prometheus both refuse its colon), so that dashboards and people
find what they know. Serving metrics carry `model`, training metrics carry `run`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["counter", "gauge", "histogram"]

LATENCY_BUCKETS_S = tuple(mantissa * 10.0**exponent for exponent in range(-5, 1) for mantissa in (1.0, 2.5, 5.0)) + (
    10.0,
    30.0,
    60.0,
)
"""From 10 µs: one step of a recurrent model is often far below the 1 to 10 ms where other servers' buckets begin."""
DURATION_BUCKETS_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
SIZE_BUCKETS = tuple(float(2**power) for power in range(13))
"""1 to 4096: sequences in a batch."""
TOKEN_BUCKETS = tuple(float(2**power) for power in range(18))
"""1 to 131072: time steps of a request."""


@dataclass(frozen=True)
class Metric:
    """One row of the table."""

    name: str
    kind: Kind
    labels: tuple[str, ...]
    help: str
    buckets: tuple[float, ...] = ()
    """Upper bounds, ascending, without +Inf; histograms only."""


def _counter(name: str, labels: str, help: str) -> Metric:
    return Metric(name, "counter", tuple(labels.split()), help)


def _gauge(name: str, labels: str, help: str) -> Metric:
    return Metric(name, "gauge", tuple(labels.split()), help)


def _histogram(name: str, labels: str, help: str, buckets: tuple[float, ...] = LATENCY_BUCKETS_S) -> Metric:
    return Metric(name, "histogram", tuple(labels.split()), help, buckets)


SERVING = (
    _counter("recurra_requests_total", "model endpoint status", "HTTP requests answered, by status."),
    _counter("recurra_request_errors_total", "model endpoint code", "Requests answered with an error, by its code."),
    _counter("recurra_requests_rejected_total", "model reason", "Requests refused before any work: queue_full, too_large, draining."),
    _counter("recurra_request_success_total", "model finished_reason", "Sequences finished: stop, length, complete, cancelled."),
    _histogram("recurra_e2e_request_latency_seconds", "model endpoint", "From the last byte of the request to the last byte of the answer."),
    _histogram("recurra_request_queue_time_seconds", "model path", "From admission to the first step (path=step) or forward pass (path=encode)."),
    _histogram("recurra_time_to_first_token_seconds", "model", "From admission to the first token that was generated."),
    _histogram("recurra_inter_token_latency_seconds", "model", "Between two tokens of one sequence."),
    _histogram("recurra_request_prompt_tokens", "model", "Time steps that came with a request.", TOKEN_BUCKETS),
    _histogram("recurra_request_generation_tokens", "model", "Tokens generated for a request.", TOKEN_BUCKETS),
    _counter("recurra_prompt_tokens_total", "model", "Time steps read from requests."),
    _counter("recurra_generation_tokens_total", "model", "Tokens generated."),
    _histogram("recurra_step_time_seconds", "model", "One tick of the engine: admit, gather, step, scatter, emit."),
    _histogram("recurra_step_batch_size", "model", "Sequences stepped together in one tick.", SIZE_BUCKETS),
    _histogram("recurra_encode_time_seconds", "model", "One forward pass over a batch of whole sequences."),
    _histogram("recurra_encode_batch_size", "model", "Sequences in one forward pass.", SIZE_BUCKETS),
    _counter("recurra_encode_padded_tokens_total", "model", "Time steps computed on padding in forward passes."),
    _gauge("recurra_num_requests_running", "model", "Requests being computed."),
    _gauge("recurra_num_requests_waiting", "model", "Requests waiting in the queue."),
    _gauge("recurra_slots_used", "model", "Engine slots that hold a sequence."),
    _gauge("recurra_slots_limit", "model", "Engine slots of the replica (S)."),
    _gauge("recurra_engine_load_ratio", "model", "Busy slots plus queue, over slots: what autoscaling looks at."),
    _gauge("recurra_sessions", "model tier", "Sessions kept, by where: hot (slot), warm (host memory)."),
    _counter("recurra_session_events_total", "model event", "Sessions restored, expired, deleted, refused (conflict), and replayed or reset after an update."),
    _histogram("recurra_session_store_seconds", "model operation", "Write-through (save) and read (load) of one session's state.", LATENCY_BUCKETS_S),
    _counter("recurra_session_store_failures_total", "model operation", "Session states that could not be saved or loaded."),
    _gauge("recurra_session_state_bytes", "model", "Size of one session's state."),
    _gauge("recurra_model_load_seconds", "model", "From start of the replica to a model that is ready."),
    _gauge("recurra_model_info", "model digest task cell", "1 for the bundle that the replica serves."),
    _counter("recurra_canary_requests_total", "model digest outcome", "What the guard hears of both bundles during a trial: ok, failed."),
    _gauge("recurra_canary_share_ratio", "model digest", "Share of new sessions and requests that a candidate gets; 0 once it is taken back."),
)  # fmt: skip

TRAINING = (
    _gauge("recurra_train_loss", "run", "Training loss of the last logged step."),
    _gauge("recurra_train_metric", "run split metric", "Value of a metric at the last evaluation."),
    _gauge("recurra_train_step", "run", "Optimizer updates so far."),
    _gauge("recurra_train_epoch", "run", "Passes over the data that have ended."),
    _gauge("recurra_train_progress_ratio", "run", "Share of the planned steps that is done."),
    _gauge("recurra_train_eta_seconds", "run", "Expected time to the last step."),
    _gauge("recurra_train_workers", "run", "World size."),
    _gauge("recurra_train_learning_rate", "run", "Learning rate of the last step."),
    _gauge("recurra_train_tokens_per_second", "run", "Real time steps a second over all ranks, lately."),
    _counter("recurra_train_tokens_total", "run", "Real time steps trained on; each rank counts its own."),
    _counter("recurra_train_sequences_total", "run", "Sequences (buckets) or windows (lanes) trained on; each rank counts its own."),
    _counter("recurra_train_steps_total", "run", "Optimizer updates; rank 0 counts."),
    _histogram("recurra_train_step_seconds", "run", "One optimizer update, data wait included; rank 0 measures."),
    _counter("recurra_train_data_wait_seconds_total", "run", "Seconds that a rank waited for its next batch."),
    _gauge("recurra_train_data_wait_ratio", "run", "Share of the time spent waiting for data, lately."),
    _counter("recurra_train_padded_tokens_total", "run", "Time steps computed on padding; each rank counts its own."),
    _gauge("recurra_train_padding_ratio", "run", "Share of the computed time steps that is padding."),
    _gauge("recurra_train_gradient_norm", "run layer", "L2 norm of the gradient before clipping; layer=all for the whole model."),
    _counter("recurra_train_gradients_clipped_total", "run", "Updates whose gradient was clipped; rank 0 counts."),
    _counter("recurra_train_steps_skipped_total", "run reason", "Updates left out by a guard: not_finite, spike; rank 0 counts."),
    _histogram("recurra_train_evaluation_seconds", "run", "One evaluation.", DURATION_BUCKETS_S),
    _histogram("recurra_train_checkpoint_seconds", "run operation", "One checkpoint: save (from the decision until it is durable), blocked (the loop stood still), restore.", DURATION_BUCKETS_S),
    _gauge("recurra_train_steps_at_risk", "run", "Updates since the last durable checkpoint: what a crash now would lose."),
    _gauge("recurra_train_checkpoint_bytes", "run", "Size of the last checkpoint."),
    _counter("recurra_train_restarts_total", "run cause", "Times the run went on from a checkpoint: failure, preemption, resize."),
)  # fmt: skip

FLEET = (
    _gauge("recurra_fleet_sources", "state", "Processes that report here: live, or silent for longer than they should be."),
    _gauge("recurra_fleet_start_time_seconds", "", "Unix time at which the collector (re)started."),
)  # fmt: skip

TABLE = SERVING + TRAINING + FLEET

BY_NAME = {metric.name: metric for metric in TABLE}


def markdown_table() -> str:
    """The table as GitHub Markdown, for README's section on metrics."""
    rows = [f"| `{m.name}` | {m.kind} | {', '.join(m.labels)} | {m.help} |" for m in TABLE]
    return "\n".join(["| metric | kind | labels | what it is |", "|---|---|---|---|", *rows]) + "\n"
