"""Pure: the snapshots of many processes become one exposition that is right for the whole fleet.

Counters and histograms with the same labels are summed over their sources; gauges keep a `source` label. Sums are
exactly rounded, so neither the order of the sources nor the compaction of dead ones can make a counter go down,
not even by the last bit: Prometheus would take that for a restart and count everything twice.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from itertools import accumulate, zip_longest

from prometheus_client import generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.core import Metric as ExposedMetric
from prometheus_client.registry import Collector

from recurra.errors import DataError
from recurra.telemetry.table import Kind

SOURCE_LABEL = "source"
SNAPSHOT_VERSION = 1


@dataclass(frozen=True)
class Family:
    """One metric with all its label values. It describes itself, since a fleet may run two versions for a while."""

    kind: Kind
    help: str
    labels: tuple[str, ...]
    bounds: tuple[float, ...]
    """Upper bounds of a histogram's buckets without +Inf; empty for the other kinds."""
    series: Mapping[tuple[str, ...], tuple[float, ...]]
    """Label values -> (value,), or for a histogram the count of each bucket, +Inf's, and the sum of all values."""


Snapshot = dict[str, Family]


def dump_snapshot(snapshot: Snapshot) -> bytes:
    """A snapshot as JSON."""
    families = {
        name: [f.kind, f.help, f.labels, f.bounds, [[values, numbers] for values, numbers in f.series.items()]]
        for name, f in snapshot.items()
    }
    return json.dumps({"version": SNAPSHOT_VERSION, "families": families}, separators=(",", ":")).encode()


def load_snapshot(data: bytes) -> Snapshot:
    """What `dump_snapshot` wrote.

    Raises:
        DataError: The bytes are no snapshot of this version.
    """
    try:
        document = json.loads(data)
        if document["version"] != SNAPSHOT_VERSION:
            raise DataError(f"A metrics snapshot has version {document['version']}; this process reads 1. Update both.")
        return {
            name: Family(kind, text, tuple(labels), tuple(bounds), {tuple(k): tuple(v) for k, v in series})
            for name, (kind, text, labels, bounds, series) in document["families"].items()
        }
    except (ValueError, KeyError, TypeError) as exc:
        raise DataError(f"A metrics snapshot of {len(data)} bytes cannot be read: {exc!r}.") from exc


def merge(snapshots: Mapping[str, Snapshot], retired: Iterable[Snapshot] = ()) -> Snapshot:
    """One snapshot for the whole fleet.

    Args:
        snapshots: Source name -> its last snapshot.
        retired: Last values of sources that are gone; their counters and histograms stay in the sums.

    Returns:
        Counters and histograms summed; each gauge of `snapshots` with its source as one more label.
    """
    everything: dict[str, list[tuple[str | None, Family]]] = {}
    for source, snapshot in [*sorted(snapshots.items()), *((None, snapshot) for snapshot in retired)]:
        for name, family in snapshot.items():
            everything.setdefault(name, []).append((source, family))
    merged = {}
    for name, found in sorted(everything.items()):
        kind = min(family.kind for _, family in found)
        same = [(source, family) for source, family in found if family.kind == kind]
        merged[name] = _join_gauges(same) if kind == "gauge" else _sum([family for _, family in same])
    return {name: family for name, family in merged.items() if family.series}


def compact(snapshots: Iterable[Snapshot]) -> list[Snapshot]:
    """As few snapshots as have exactly the same sums (a float sum may need two); gauges are left out."""
    everything: dict[str, list[Family]] = {}
    for snapshot in snapshots:
        for name, family in snapshot.items():
            if family.kind != "gauge":
                everything.setdefault(name, []).append(family)
    compacted: list[Snapshot] = []
    for name, families in everything.items():
        for index, family in enumerate(_exact_parts(families)):
            if index == len(compacted):
                compacted.append({})
            compacted[index][name] = family
    return compacted


def expose(snapshot: Snapshot) -> str:
    """Prometheus' text format."""
    return generate_latest(SnapshotCollector(snapshot)).decode()


class SnapshotCollector(Collector):
    """A snapshot as prometheus_client's exposition takes it."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot

    def collect(self) -> Iterator[ExposedMetric]:
        for name, family in self._snapshot.items():
            yield _exposed(name, family)


def _exposed(name: str, family: Family) -> ExposedMetric:
    if family.kind == "histogram":
        histogram = HistogramMetricFamily(name, family.help, labels=family.labels)
        bounds = [*(f"{bound:.12g}" for bound in family.bounds), "+Inf"]
        for values, (*counts, total) in sorted(family.series.items()):
            histogram.add_metric(values, list(zip(bounds, accumulate(counts), strict=True)), total)
        return histogram
    simple = (
        CounterMetricFamily(name, family.help, labels=family.labels)
        if family.kind == "counter"
        else GaugeMetricFamily(name, family.help, labels=family.labels)
    )
    for values, (number,) in sorted(family.series.items()):
        simple.add_metric(values, number)
    return simple


def _join_gauges(found: list[tuple[str | None, Family]]) -> Family:
    families = _with_common_shape([family for _, family in found])
    series = {
        (*values, source): numbers
        for (source, _), family in zip(found, families, strict=True)
        if source is not None
        for values, numbers in family.series.items()
    }
    first = families[0]
    return Family("gauge", first.help, (*first.labels, SOURCE_LABEL), (), series)


def _sum(families: list[Family]) -> Family:
    families = _with_common_shape(families)
    series = {
        values: tuple(math.fsum(numbers) for numbers in zip(*rows, strict=True))
        for values, rows in _rows_by_labels(families).items()
    }
    first = families[0]
    return Family(first.kind, first.help, first.labels, first.bounds, series)


def _exact_parts(families: list[Family]) -> list[Family]:
    families = _with_common_shape(families)
    first = families[0]
    parts: list[dict[tuple[str, ...], tuple[float, ...]]] = [{}]
    for values, rows in _rows_by_labels(families).items():
        columns = [_expand(numbers) for numbers in zip(*rows, strict=True)]
        for index, row in enumerate(zip_longest(*columns, fillvalue=0.0)):
            if index == len(parts):
                parts.append({})
            parts[index][values] = row
    return [Family(first.kind, first.help, first.labels, first.bounds, series) for series in parts]


def _expand(numbers: Iterable[float]) -> list[float]:
    """The fewest floats whose exact sum is that of `numbers`, largest first; at least one."""
    numbers = list(numbers)
    if not all(map(math.isfinite, numbers)):
        return [math.fsum(numbers)]
    rest = sum(map(Fraction, numbers), Fraction(0))
    parts = [float(rest)]
    while rest := rest - Fraction(parts[-1]):
        parts.append(float(rest))
    return parts


def _rows_by_labels(families: list[Family]) -> dict[tuple[str, ...], list[tuple[float, ...]]]:
    rows: dict[tuple[str, ...], list[tuple[float, ...]]] = {}
    for family in families:
        for values, numbers in family.series.items():
            rows.setdefault(values, []).append(numbers)
    return rows


def _with_common_shape(families: list[Family]) -> list[Family]:
    """Families of two versions of the program, with all labels of both and the bucket bounds that both have."""
    if len({(family.labels, family.bounds) for family in families}) == 1:
        return families
    labels = tuple(sorted({label for family in families for label in family.labels}))
    bounds = tuple(sorted(set.intersection(*(set(family.bounds) for family in families))))
    return [_reshape(family, labels, bounds) for family in families]


def _reshape(family: Family, labels: tuple[str, ...], bounds: tuple[float, ...]) -> Family:
    edges = [family.bounds.index(bound) + 1 for bound in bounds]
    series = {}
    for values, numbers in family.series.items():
        named = dict(zip(family.labels, values, strict=True))
        if family.kind == "histogram":
            *counts, total = numbers
            spans = zip([0, *edges], [*edges, len(counts)], strict=True)
            numbers = (*(math.fsum(counts[start:end]) for start, end in spans), total)
        # To Prometheus an empty label value is the same as no label.
        series[tuple(named.get(label, "") for label in labels)] = numbers
    return Family(family.kind, family.help, labels, bounds, series)
