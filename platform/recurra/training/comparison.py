"""How runs differ: in what was set, in what they ran on, and in what came out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from recurra.storage.store import Store
from recurra.training.finish import RESULT
from recurra.training.runs import all_records, data_of, read_json, summarise
from recurra.training.start import ENVIRONMENT, JOB

_NOT_OF_INTEREST = ("name", "runs")


@dataclass(frozen=True)
class LossComparison:
    """The losses of two runs, update by update."""

    common: int
    """Updates that both have."""
    first_difference: int | None
    """The first update whose loss is not the same number; None when all are."""
    largest_difference: float
    """Between the losses of one update."""
    last: tuple[float | None, float | None]
    """Losses at the last update that both have."""

    @property
    def equal(self) -> bool:
        """Whether there is something to compare, and it is the same bit for bit."""
        return self.common > 0 and self.first_difference is None


@dataclass(frozen=True)
class Comparison:
    """Several runs side by side; each row holds one value a run, None where a run has none."""

    runs: list[str]
    settings: dict[str, list[Any]] = field(default_factory=dict)
    """Dotted path -> values, of those that differ."""
    environment: dict[str, list[Any]] = field(default_factory=dict)
    """Versions, data digests and commits that differ."""
    results: dict[str, list[Any]] = field(default_factory=dict)
    losses: list[LossComparison] = field(default_factory=list)
    """Of the first run with each of the others."""

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "losses": [{**asdict(one), "equal": one.equal} for one in self.losses]}


def compare(stores: Sequence[Store]) -> Comparison:
    """Compare runs, two or more.

    Args:
        stores: Their prefixes.
    """
    jobs = [_flat({k: v for k, v in read_json(store, JOB).items() if k not in _NOT_OF_INTEREST}) for store in stores]
    surroundings = [_flat({**read_json(store, ENVIRONMENT), "data": data_of(store)}) for store in stores]
    records = [all_records(store) for store in stores]
    return Comparison(
        runs=[store.url.rpartition("/")[2] for store in stores],
        settings=_differing(jobs),
        environment=_differing(surroundings),
        results=_results(stores),
        losses=[compare_losses(records[0], other) for other in records[1:]],
    )


def compare_losses(first: list[dict[str, Any]], second: list[dict[str, Any]]) -> LossComparison:
    """Two lists of step records, over the updates that both have."""
    other = {record["step"]: record["loss"] for record in second}
    pairs = [(record["step"], record["loss"], other[record["step"]]) for record in first if record["step"] in other]
    differing = [(step, a, b) for step, a, b in pairs if a != b]
    sizes = [math.inf if a is None or b is None else abs(a - b) for _, a, b in differing]
    return LossComparison(
        common=len(pairs),
        first_difference=differing[0][0] if differing else None,
        largest_difference=max(sizes, default=0.0),
        last=(pairs[-1][1], pairs[-1][2]) if pairs else (None, None),
    )


def _results(stores: Sequence[Store]) -> dict[str, list[Any]]:
    summaries = [summarise(store) for store in stores]
    results = [read_json(store, RESULT) for store in stores]
    metrics = sorted({name for summary in summaries for name in summary.metrics})
    return {
        "state": [summary.state for summary in summaries],
        "updates": [summary.step for summary in summaries],
        "training loss": [summary.loss for summary in summaries],
        **{name: [summary.metrics.get(name) for summary in summaries] for name in metrics},
        "best update": [result.get("best_step") for result in results],
        "workers": [summary.workers for summary in summaries],
        "attempts": [summary.attempts for summary in summaries],
        "tokens/s": [summary.tokens_per_s for summary in summaries],
        "seconds": [result.get("duration_s") for result in results],
    }


def _differing(found: list[dict[str, Any]]) -> dict[str, list[Any]]:
    paths = sorted({path for one in found for path in one})
    rows = {path: [one.get(path) for one in found] for path in paths}
    return {path: values for path, values in rows.items() if any(value != values[0] for value in values)}


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as dotted paths."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict) and value:
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat
