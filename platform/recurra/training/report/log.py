"""Everything that a run left in its prefix, read back."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recurra.errors import NotFoundError
from recurra.storage.store import Store

REACH = "reach.json"

Column = NDArray[np.float64]


@dataclass(frozen=True)
class RunLog:
    """A run as its files tell it."""

    job: dict[str, Any]
    environment: dict[str, Any]
    data: dict[str, Any]
    result: dict[str, Any]
    samples: list[dict[str, Any]]
    heads: dict[str, Any]
    """What an NTM's heads did on one sequence; empty for other models."""
    steps: dict[str, Column]
    """Name -> one number a step, in order; NaN where there was none."""
    layer_norms: dict[str, Column]
    """Parameter -> gradient norm at the steps of `layer_steps`."""
    layer_steps: Column
    events: list[dict[str, Any]] = field(default_factory=list)
    """Of all attempts, by time."""
    reach: dict[str, Any] = field(default_factory=dict)
    """How far back the gradient of the best checkpoint reaches: `Reach.to_json()`."""

    def of_kind(self, event: str) -> list[dict[str, Any]]:
        """Events of one kind."""
        return [item for item in self.events if item["event"] == event]


def read_log(store: Store) -> RunLog:
    """Read a run's prefix; what is not there yet is empty."""
    records = sorted(_lines(store, "metrics/"), key=lambda record: int(record["step"]))
    with_layers = [record for record in records if "layer_norms" in record]
    layers = sorted({name for record in with_layers for name in record["layer_norms"]})
    names = [name for name in (records[0] if records else {}) if name != "layer_norms"]
    return RunLog(
        job=_json(store, "job.json", {}),
        environment=_json(store, "environment.json", {}),
        data=_json(store, "data.json", {}),
        result=_json(store, "result.json", {}),
        samples=_json(store, "samples.json", []),
        heads=_json(store, "heads.json", {}),
        steps={name: _column([record.get(name) for record in records]) for name in names},
        layer_norms={name: _column([record["layer_norms"].get(name) for record in with_layers]) for name in layers},
        layer_steps=_column([record["step"] for record in with_layers]),
        reach=_json(store, REACH, {}),
        events=sorted(_lines(store, "events/"), key=lambda event: float(event["time"])),
    )


def _lines(store: Store, prefix: str) -> list[dict[str, Any]]:
    return [json.loads(line) for info in store.list(prefix) for line in store.read(info.key).splitlines()]


def _json(store: Store, key: str, default: Any) -> Any:
    try:
        return json.loads(store.read(key))
    except NotFoundError:
        return default


def _column(values: list[float | None]) -> Column:
    return np.array([np.nan if value is None else value for value in values], np.float64)
