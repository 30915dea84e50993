import re

import pytest

from recurra.telemetry.table import BY_NAME, LATENCY_BUCKETS_S, TABLE, markdown_table


def test_a_name_stands_in_the_table_once():
    """Two rows with one name would give two meanings to one series."""
    assert len(BY_NAME) == len(TABLE)


@pytest.mark.parametrize("metric", TABLE, ids=lambda metric: metric.name)
def test_a_row_follows_prometheus_rules(metric):
    """What promtool would complain about is refused here, also where promtool is not installed."""
    assert re.fullmatch(r"recurra_[a-z0-9_]+", metric.name)
    assert metric.name.endswith("_total") == (metric.kind == "counter")
    assert bool(metric.buckets) == (metric.kind == "histogram")
    assert list(metric.buckets) == sorted(set(metric.buckets))
    assert metric.help.endswith(".") and "|" not in metric.help
    assert not {"le", "source"} & set(metric.labels), "these two are added by the exposition"


def test_latency_buckets_resolve_a_step_of_a_small_model():
    """A step of an LSTM takes 30 to 500 µs: with buckets from 10 ms every quantile would read 10 ms."""
    assert LATENCY_BUCKETS_S[0] == pytest.approx(10e-6)
    assert sum(bound <= 1e-3 for bound in LATENCY_BUCKETS_S) >= 6


def test_the_markdown_table_has_a_row_for_each_metric():
    """README shows this text, so a new metric is documented or the test of README fails."""
    assert len(markdown_table().splitlines()) == len(TABLE) + 2
