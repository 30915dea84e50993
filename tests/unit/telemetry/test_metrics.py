import math
from concurrent.futures import ThreadPoolExecutor

import pytest

from recurra.telemetry.federation import load_snapshot
from recurra.telemetry.metrics import Metrics


@pytest.fixture
def metrics():
    return Metrics(model="sms", run="night")


def test_labels_bound_once_are_on_every_metric(metrics):
    """A forgotten label would split one series into two."""
    metrics.counter("recurra_requests_total", endpoint="predict", status="200").inc()

    assert 'recurra_requests_total{endpoint="predict",model="sms",status="200"} 1.0' in metrics.exposition()


def test_the_same_labels_give_the_same_series(metrics):
    """Two parts of a process that count the same thing must not overwrite each other."""
    metrics.counter("recurra_prompt_tokens_total").inc(2)
    metrics.counter("recurra_prompt_tokens_total").inc(3)

    assert metrics.values()["recurra_prompt_tokens_total"].series == {("sms",): (5.0,)}


def test_a_series_is_there_from_the_moment_it_is_asked_for(metrics):
    """rate() misses the first increment of a counter that appears with it; an alert on an absent series never fires."""
    metrics.counter("recurra_train_restarts_total", cause="failure")

    assert 'recurra_train_restarts_total{cause="failure",run="night"} 0.0' in metrics.exposition()


def test_many_equal_observations_count_like_single_ones(metrics):
    """One call a tick stands for a thousand sequences."""
    one = metrics.histogram("recurra_step_batch_size")
    for _ in range(7):
        one.observe(3.0)
    many = Metrics(model="sms").histogram("recurra_step_batch_size")
    many.observe(3.0, count=7)

    assert one.read() == many.read()


def test_observations_of_a_whole_batch_count_like_single_ones(metrics):
    """One call a tick stands for its sequences, which waited for different times."""
    values = [0.5, 3.0, 4.0, 1e9]
    single = metrics.histogram("recurra_step_batch_size")
    for value in values:
        single.observe(value)
    together = Metrics(model="sms").histogram("recurra_step_batch_size")
    together.observe_all(values)

    assert single.read() == together.read()


def test_an_observation_on_a_bound_falls_into_its_bucket(metrics):
    """Prometheus' buckets include their upper bound."""
    histogram = metrics.histogram("recurra_step_batch_size")
    histogram.observe(4.0)

    assert histogram.read()[0][:4] == [0, 0, 1, 0]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_an_observation_that_is_not_finite_spoils_no_sum(metrics, value):
    """A NaN in the sum would stay there until the process ends."""
    histogram = metrics.histogram("recurra_step_time_seconds")
    histogram.observe(value)
    histogram.observe(0.5)

    counts, total = histogram.read()
    assert (sum(counts), total) == (2, 0.5)


def test_a_section_that_raises_is_timed_too(metrics):
    """Slow failures are the ones to find."""
    histogram = metrics.histogram("recurra_train_evaluation_seconds")
    with pytest.raises(ZeroDivisionError), histogram.time():
        _ = 1 / 0

    assert sum(histogram.read()[0]) == 1


def test_threads_lose_no_count(metrics):
    """Serving counts from its event loop and its compute thread at once."""
    counter = metrics.counter("recurra_generation_tokens_total")
    histogram = metrics.histogram("recurra_step_time_seconds")

    def work(_):
        for _ in range(500):
            counter.inc()
            histogram.observe(0.001)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))

    values = metrics.values()
    assert values["recurra_generation_tokens_total"].series[("sms",)] == (2000.0,)
    assert sum(histogram.read()[0]) == 2000


def test_a_snapshot_reads_back_as_the_same_values(metrics):
    """It is what travels from every process to the collector."""
    metrics.counter("recurra_prompt_tokens_total").inc(2)
    metrics.gauge("recurra_train_loss").set(math.inf)
    metrics.histogram("recurra_step_time_seconds").observe(0.1)

    assert load_snapshot(metrics.snapshot()) == metrics.values()


def test_an_unknown_metric_names_the_nearest_one(metrics):
    """The table is the only place where a metric is born."""
    with pytest.raises(KeyError, match="Did you mean 'recurra_requests_total'"):
        metrics.counter("recurra_request_total")


def test_a_metric_of_another_kind_says_how_to_ask(metrics):
    """A gauge that is incremented like a counter would not be summed over the fleet."""
    with pytest.raises(KeyError, match=r"metrics\.gauge"):
        metrics.counter("recurra_slots_used")


def test_missing_and_unknown_labels_are_named():
    """Found when the child is asked for, not in the hot path."""
    with pytest.raises(KeyError, match=r"missing \['status'\], unknown \['code'\]"):
        Metrics(model="m").counter("recurra_requests_total", endpoint="predict", code="200")
