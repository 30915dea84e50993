"""Counters, gauges and histograms of one process, named by the table; a snapshot of them travels to the fleet."""

from __future__ import annotations

import math
import time
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from threading import Lock

from prometheus_client import Counter, Gauge

from recurra.config.load import nearest
from recurra.telemetry.federation import Family, Snapshot, dump_snapshot, expose
from recurra.telemetry.table import BY_NAME, TABLE, Kind, Metric

__all__ = ["TABLE", "Counter", "Gauge", "Histogram", "Metrics"]


class Metrics:
    """The metrics of one process. Ask for a child once, keep it, and update it in the hot path (below 1 µs).

        metrics = Metrics(model="sms")                     # labels with the same value everywhere are bound once
        step_s = metrics.histogram("recurra_step_time_seconds")
        step_s.observe(0.0004)

    Every method may be called from any thread.

    Args:
        bound: Values of labels; a metric that has no such label ignores them.
    """

    def __init__(self, **bound: str) -> None:
        self._bound = bound
        self._families: dict[str, _Family] = {}
        self._lock = Lock()

    def counter(self, name: str, **labels: str) -> Counter:
        """The counter of these labels, starting at 0 now; sums over processes when federated."""
        family, values = self._family(name, "counter", labels)
        assert isinstance(family, Counter)
        return family.labels(*values) if values else family

    def gauge(self, name: str, **labels: str) -> Gauge:
        """The gauge of these labels; keeps its process apart (label `source`) when federated."""
        family, values = self._family(name, "gauge", labels)
        assert isinstance(family, Gauge)
        return family.labels(*values) if values else family

    def histogram(self, name: str, **labels: str) -> Histogram:
        """The histogram of these labels; sums over processes when federated."""
        family, values = self._family(name, "histogram", labels)
        assert isinstance(family, _Histograms)
        return family.child(values)

    def snapshot(self) -> bytes:
        """All values now, as JSON that `federation.load_snapshot` reads in any process."""
        return dump_snapshot(self.values())

    def values(self) -> Snapshot:
        """All values now; a metric that nobody has asked for yet is not among them."""
        with self._lock:
            families = list(self._families.items())
        return {name: _read(BY_NAME[name], family) for name, family in families}

    def exposition(self) -> str:
        """All values now in Prometheus' text format: what a process that is not part of a fleet serves."""
        return expose(self.values())

    def _family(self, name: str, kind: Kind, labels: dict[str, str]) -> tuple[_Family, tuple[str, ...]]:
        metric = BY_NAME.get(name)
        if metric is None:
            raise KeyError(f"{name} is no metric of telemetry/table.py. {nearest(name, BY_NAME)}")
        if metric.kind != kind:
            raise KeyError(f"{name} is a {metric.kind}. Ask for it with metrics.{metric.kind}(...).")
        given = {**self._bound, **labels}
        missing = [label for label in metric.labels if label not in given]
        unknown = [label for label in labels if label not in metric.labels]
        if missing or unknown:
            raise KeyError(f"{name} has the labels {metric.labels}: missing {missing}, unknown {unknown}.")
        with self._lock:
            if name not in self._families:
                self._families[name] = _build(metric)
            return self._families[name], tuple(given[label] for label in metric.labels)


class Histogram:
    """Counts of observations by bucket. Unlike prometheus_client's it takes many equal observations in one call,
    since one tick of the engine gives every one of a thousand sequences the same inter-token latency."""

    __slots__ = ("_bounds", "_counts", "_lock", "_sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0
        self._lock = Lock()

    def observe(self, value: float, count: int = 1) -> None:
        """Record `count` observations of `value` (at least 0); one that is not finite goes to +Inf and to no sum."""
        finite = math.isfinite(value)
        index = bisect_left(self._bounds, value) if finite else len(self._bounds)
        with self._lock:
            self._counts[index] += count
            if finite:
                self._sum += value * count

    def observe_all(self, values: Iterable[float]) -> None:
        """Record finite values, under one lock."""
        bounds, counts = self._bounds, self._counts
        with self._lock:
            for value in values:
                counts[bisect_left(bounds, value)] += 1
                self._sum += value

    @contextmanager
    def time(self) -> Iterator[None]:
        """Observe the seconds that the block takes, also when it raises."""
        start_s = time.perf_counter()
        try:
            yield
        finally:
            self.observe(time.perf_counter() - start_s)

    def read(self) -> tuple[list[int], float]:
        """Counts of each bucket (not cumulative, +Inf last) and the sum of all values, of one moment."""
        with self._lock:
            return list(self._counts), self._sum


class _Histograms:
    """All label values of one histogram."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._children: dict[tuple[str, ...], Histogram] = {}
        self._lock = Lock()

    def child(self, values: tuple[str, ...]) -> Histogram:
        with self._lock:
            return self._children.setdefault(values, Histogram(self._bounds))

    def items(self) -> list[tuple[tuple[str, ...], Histogram]]:
        with self._lock:
            return list(self._children.items())


_Family = Counter | Gauge | _Histograms


def _build(metric: Metric) -> _Family:
    if metric.kind == "counter":
        return Counter(metric.name, metric.help, metric.labels, registry=None)
    if metric.kind == "gauge":
        return Gauge(metric.name, metric.help, metric.labels, registry=None)
    return _Histograms(metric.buckets)


def _read(metric: Metric, family: _Family) -> Family:
    if isinstance(family, _Histograms):
        series = {}
        for values, child in family.items():
            counts, total = child.read()
            series[values] = (*map(float, counts), total)
    else:
        samples = [sample for collected in family.collect() for sample in collected.samples]
        series = {
            tuple(sample.labels[label] for label in metric.labels): (float(sample.value),)
            for sample in samples
            if not sample.name.endswith("_created")
        }
    return Family(metric.kind, metric.help, metric.labels, metric.buckets, series)
