import math

import numpy as np
import pytest
import torch

from recurra.tasks.alarms import (
    BINS,
    EDGES,
    GROUPS,
    alarm_metrics,
    area,
    counts_of,
    share_above,
    tally,
    threshold_of,
    window_peaks,
)


def counted(scores) -> np.ndarray:
    sums = tally("normal", torch.tensor(scores, dtype=torch.float64))
    return counts_of("normal", {name: float(value) for name, value in sums.items()})


def sums_of(**groups) -> dict[str, float]:
    sums = {}
    for group in GROUPS:
        found = tally(group, torch.tensor(groups.get(group, []), dtype=torch.float64))
        sums |= {name: float(value) for name, value in found.items()}
    return sums


def test_a_threshold_leaves_the_stated_share_above_it():
    """By hand: of ranks 1 to 9 with counts 90, 1, ..., 1, one alarm in twenty leaves (above + 1) / 99 <= 0.05, so 3 of
    the 98 may lie above, and ranks 7, 8, 9 do."""
    counts = counted([1] * 90 + [2, 3, 4, 5, 6, 7, 8, 9])

    assert threshold_of(counts, 0.05) == 6
    assert share_above(counts, 6) == pytest.approx(3 / 98)


def test_too_few_items_for_a_small_share_give_no_threshold():
    """Nobody can promise one alarm in a thousand after looking at ten sequences."""
    assert threshold_of(counted([1.0] * 10), 0.001) == math.inf
    assert threshold_of(counted([]), 0.5) == math.inf
    assert threshold_of(counted([1.0] * 10), 0.1) == 1


def test_the_promised_rate_holds_for_data_to_come():
    """Of thresholds that were each set on 199 items, the mean rate of alarms on others stays below the promise."""
    rng = np.random.default_rng(4)
    rates = []
    for _ in range(60):
        threshold = threshold_of(counted(rng.exponential(size=199)), 0.05)
        rates.append(share_above(counted(rng.exponential(size=2000)), threshold))
    assert 0.035 < np.mean(rates) < 0.0505


def test_every_score_has_a_bin():
    """From none to infinity; edges rise, and whole numbers are edges, so that ranks are told apart."""
    assert (np.diff(EDGES) > 0).all()
    assert set(range(1, 65)) <= set(EDGES.tolist())
    counts = counted([0.0, math.inf, EDGES[5], 12.0])
    assert counts[0] == counts[5] == counts[BINS - 1] == 1 and counts.sum() == 4
    assert share_above(counts, 12.0) == 1 / 4 and share_above(counts, 11.0) == 1 / 2


def test_area_is_the_chance_to_rank_a_pair_rightly():
    """By hand: of six pairs, 4 are right and one is equal."""
    assert area(counted([1, 2, 3]), counted([2, 9])) == pytest.approx((1 + 0.5 + 3) / 6)
    assert math.isnan(area(counted([]), counted([1])))


def test_metrics_of_known_scores():
    """By hand: calibrated on 19 items at 1 and a rate of 10 %, the threshold is 1; then 1 of 4 normal items and 3 of 4
    anomalous ones are above, and one of two stretches."""
    sums = sums_of(calibration=[1] * 19, normal=[1, 1, 1, 5], anomalous=[1, 5, 5, 5], windows=[1, 5])
    metrics = alarm_metrics(sums, 0.1)

    assert metrics == {
        "threshold": 1,
        "false_alarm_rate": 0.25,
        "recall": 0.75,
        "precision": 0.75,
        "f1": 0.75,
        "auroc": pytest.approx((3 * 3 + 3 * 0.5 + 0.5 * 3 + 0) / 16 + 1 / 16 * 0),
        "windows_found": 0.5,
    }


def test_without_anomalies_there_is_still_a_threshold():
    """Most data has no labels: what is normal sets the threshold, and nothing is said of what it finds."""
    metrics = alarm_metrics(sums_of(normal=[1] * 50 + [4] * 50), 0.2)

    assert metrics == {"threshold": 4, "false_alarm_rate": 0}


def test_a_stretch_counts_by_its_highest_score():
    """Two stretches in the first row, one that begins with the second."""
    marked = torch.tensor([[1, 1, 0, 1], [1, 0, 0, 0]]).bool()
    scores = torch.tensor([[1.0, 3, 9, 4], [2, 9, 9, 9]])

    assert window_peaks(scores, marked).tolist() == [3, 4, 2]
    assert window_peaks(scores, torch.zeros_like(marked)).tolist() == []
