import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from recurra.errors import DataError
from recurra.telemetry.federation import Family, compact, dump_snapshot, expose, load_snapshot, merge
from recurra.telemetry.metrics import Metrics

observations = st.lists(st.floats(0, 100, allow_nan=False), max_size=12)
fleets = st.dictionaries(st.sampled_from("abcdef"), observations, min_size=1)
amounts = st.lists(st.floats(0, 1e6, allow_nan=False), max_size=5)


def counted(values):
    """Snapshot of a process that counted and observed `values`."""
    metrics = Metrics(model="m")
    for value in values:
        metrics.counter("recurra_prompt_tokens_total").inc(value)
        metrics.histogram("recurra_step_time_seconds").observe(value)
        metrics.gauge("recurra_slots_used").set(value)
    return metrics.values()


@given(fleets)
def test_merging_snapshots_gives_the_sum_of_all_observations(fleet):
    """The law of the room: one scrape of the fleet reads as if one process had seen everything."""
    merged = merge({source: counted(values) for source, values in fleet.items()})
    together = counted([value for values in fleet.values() for value in values])

    for name in ("recurra_prompt_tokens_total", "recurra_step_time_seconds"):
        if name not in together:
            assert name not in merged
            continue
        for labels, numbers in together[name].series.items():
            assert merged[name].series[labels] == pytest.approx(numbers)
    counts = together.get("recurra_step_time_seconds")
    if counts:
        assert merged["recurra_step_time_seconds"].series[("m",)][:-1] == counts.series[("m",)][:-1]


@given(fleets, st.randoms())
def test_the_order_of_sources_does_not_matter(fleet, random):
    """Snapshots arrive in any order, and a counter may not wobble by the last bit."""
    snapshots = [(source, counted(values)) for source, values in fleet.items()]
    shuffled = list(snapshots)
    random.shuffle(shuffled)

    assert merge(dict(snapshots)) == merge(dict(shuffled))


@given(fleets, st.integers(0, 5))
def test_no_counter_goes_down_when_a_source_dies(fleet, deaths):
    """Prometheus takes the smallest fall for a restart and adds the whole value to every rate."""
    living = {source: counted(values) for source, values in fleet.items()}
    before = merge(living)
    retired = []
    for source in list(living)[:deaths]:
        retired = compact([*retired, living.pop(source)])
    after = merge(living, retired)

    for name, family in before.items():
        if family.kind != "gauge":
            assert after[name] == family, "neither down nor up, not by one bit"


@settings(max_examples=50)
@given(st.lists(amounts, min_size=1, max_size=6))
def test_compacted_snapshots_have_exactly_the_same_sums(rounds):
    """A fleet that scales for months must not keep a snapshot of each process that ever was."""
    snapshots = [counted(values) for values in rounds]
    compacted = compact(snapshots)

    assert len(compacted) <= max(2, len(snapshots))
    assert merge({}, compacted) == merge({}, snapshots)


def test_compacting_keeps_what_one_float_cannot_hold():
    """1e16 + 1 + 1 is 1e16 in floats added one by one, and 1e16 + 2 in truth."""
    tiny = [counted([1.0]), counted([1.0])]
    name = "recurra_prompt_tokens_total"

    assert merge({}, [*compact([counted([1e16]), tiny[0]]), tiny[1]])[name].series[("m",)] == (1e16 + 2,)


def test_gauges_keep_their_source_and_end_with_it():
    """The mean of two replicas' slots is nobody's number, and a dead replica has none."""
    merged = merge({"a": counted([1.0]), "b": counted([2.0])}, [counted([3.0])])

    assert merged["recurra_slots_used"].series == {("m", "a"): (1.0,), ("m", "b"): (2.0,)}


def test_histograms_of_two_versions_share_the_bounds_that_both_have():
    """During a rolling upgrade both are there; every bucket that is shown is still exact."""
    old = Family("histogram", "h", ("model",), (1.0, 2.0, 4.0), {("m",): (1.0, 1.0, 1.0, 1.0, 9.0)})
    new = Family("histogram", "h", ("model",), (1.0, 4.0, 8.0), {("m",): (2.0, 2.0, 2.0, 2.0, 30.0)})

    merged = merge({"a": {"recurra_x_seconds": old}, "b": {"recurra_x_seconds": new}})["recurra_x_seconds"]

    assert merged.bounds == (1.0, 4.0)
    assert merged.series == {("m",): (3.0, 4.0, 5.0, 39.0)}


def test_a_label_that_only_one_version_has_is_empty_for_the_other():
    """To Prometheus an empty label is no label, so the old series go on as they were."""
    old = Family("counter", "h", ("model",), (), {("m",): (1.0,)})
    new = Family("counter", "h", ("model", "path"), (), {("m", "step"): (2.0,)})

    merged = merge({"a": {"recurra_x_total": old}, "b": {"recurra_x_total": new}})["recurra_x_total"]

    assert merged.labels == ("model", "path")
    assert merged.series == {("m", ""): (1.0,), ("m", "step"): (2.0,)}


@given(fleets)
def test_prometheus_reads_what_is_exposed(fleet):
    """The client library's own parser finds each value again."""
    merged = merge({source: counted(values) for source, values in fleet.items()})
    parsed = {family.name: family for family in text_string_to_metric_families(expose(merged))}

    for name, family in merged.items():
        samples = parsed[name.removesuffix("_total")].samples
        if family.kind == "histogram":
            infinite = [sample.value for sample in samples if sample.labels.get("le") == "+Inf"]
            assert infinite == [math.fsum(numbers[:-1]) for numbers in family.series.values()]
        else:
            assert sorted(sample.value for sample in samples) == sorted(n for (n,) in family.series.values())


def test_a_value_that_is_not_finite_does_not_stop_the_others():
    """A gauge may be NaN (a diverged loss), and nobody may lose the other metrics over it."""
    metrics = Metrics(run="r")
    metrics.gauge("recurra_train_loss").set(math.nan)
    metrics.counter("recurra_train_tokens_total").inc(math.inf)

    assert 'recurra_train_loss{run="r",source="a"} NaN' in expose(merge({"a": metrics.values()}))
    assert merge({}, compact([metrics.values()]))["recurra_train_tokens_total"].series == {("r",): (math.inf,)}


@pytest.mark.parametrize("data", [b"", b"{}", b"[1]", b'{"version":1,"families":{"a":1}}'])
def test_bytes_that_are_no_snapshot_are_refused(data):
    """A foreign caller of the collector must not stop it."""
    with pytest.raises(DataError, match="cannot be read"):
        load_snapshot(data)


def test_a_snapshot_of_another_version_says_so():
    """Only happens when two releases share a cluster."""
    data = dump_snapshot({}).replace(b'"version":1', b'"version":2')

    with pytest.raises(DataError, match="version 2"):
        load_snapshot(data)
