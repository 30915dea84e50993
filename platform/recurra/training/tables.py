"""The run's log as Parquet, for pandas, DuckDB and spreadsheets: one table of steps, one of events."""

from __future__ import annotations

import io
import json
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from recurra.storage.store import Store
from recurra.training.report.log import RunLog

STEPS = "steps.parquet"
"""A row an update: its numbers, and the gradient norm of each parameter where it was measured (`layer_norms`)."""
EVENTS = "events.parquet"
"""A row an event: attempt, event, step, time (UTC), `metrics`, and whatever else the event says as JSON in `details`."""

_WHOLE = ("step", "epoch", "tokens", "padded_tokens")
_MOMENT = pa.timestamp("ms", tz="UTC")
_NUMBERS = pa.map_(pa.string(), pa.float64())


def write_tables(store: Store, log: RunLog) -> None:
    """Put both tables into the run's prefix; a number that was not finite is null or left out there."""
    store.write(STEPS, _parquet(_steps(log)))
    store.write(EVENTS, _parquet(_events(log)))


def _steps(log: RunLog) -> pa.Table:
    columns: dict[str, Any] = {}
    for name, values in log.steps.items():
        if name == "time":
            columns[name] = _moments(values.tolist())
        elif name in _WHOLE:
            columns[name] = pa.array(values, pa.int64(), from_pandas=True)
        else:
            columns[name] = pa.array(values, pa.float64(), from_pandas=True)
    if log.layer_norms:
        rows: list[list[tuple[str, float]] | None] = [None] * len(log.steps["step"])
        first = int(log.steps["step"][0])
        for row, step in enumerate(log.layer_steps):
            rows[int(step) - first] = [
                (name, float(values[row])) for name, values in log.layer_norms.items() if not np.isnan(values[row])
            ]
        columns["layer_norms"] = pa.array(rows, _NUMBERS)
    return pa.table(columns)


def _events(log: RunLog) -> pa.Table:
    known = ("attempt", "event", "step", "time", "metrics")
    metrics = [
        [(name, value) for name, value in event.get("metrics", {}).items() if isinstance(value, (int, float))]
        for event in log.events
    ]
    details = [
        json.dumps({name: value for name, value in event.items() if name not in known}, sort_keys=True)
        for event in log.events
    ]
    return pa.table(
        {
            "attempt": pa.array([event["attempt"] for event in log.events], pa.string()),
            "event": pa.array([event["event"] for event in log.events], pa.string()),
            "step": pa.array([event["step"] for event in log.events], pa.int64()),
            "time": _moments([float(event["time"]) for event in log.events]),
            "metrics": pa.array(metrics, _NUMBERS),
            "details": pa.array(details, pa.string()),
        }
    )


def _moments(seconds: list[float]) -> pa.Array:
    return pa.array([round(value * 1000) for value in seconds], pa.int64()).cast(_MOMENT)


def _parquet(table: pa.Table) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    return buffer.getvalue()
