"""When a score becomes an alarm: histograms of scores that add up over ranks, thresholds from them, and what they cost.

A threshold is the lowest edge that at most the stated share of held-out normal items lies above, with the correction of
split conformal prediction (Vovk, Gammerman, Shafer 2005; Angelopoulos and Bates 2021, arXiv 2107.07511, section 1):
(above + 1) / (n + 1) <= share, so that the share holds for items to come, not only for those that were seen.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Group = Literal["calibration", "normal", "anomalous", "windows"]
GROUPS: tuple[Group, ...] = ("calibration", "normal", "anomalous", "windows")
"""Items that set the threshold, those that it is measured on, and stretches of anomalous steps by their highest score."""

EXACT = 64
"""Scores that are whole numbers, such as ranks, are told apart up to here."""
EDGES: NDArray[np.float64] = np.concatenate(
    [np.geomspace(1e-3, 1, 80)[:-1], np.unique(np.concatenate([np.arange(1, EXACT + 1), np.geomspace(1, EXACT, 120)]))]
    + [np.geomspace(EXACT, 1e6, 100)[1:]]
)
"""Upper ends of the bins; 1 to 10 % apart."""
BINS = len(EDGES) + 1


def tally(group: Group, scores_N: Tensor) -> dict[str, Tensor]:
    """How many scores lie in each bin, as sums of a `Loss`; always all bins, so that every rank names the same."""
    edges = torch.from_numpy(EDGES).to(scores_N.device)
    bins_N = torch.bucketize(scores_N.double(), edges)
    counts = torch.bincount(bins_N, minlength=BINS).double()
    return {f"{group}.{index}": count for index, count in enumerate(counts.unbind())}


def counts_of(group: Group, sums: Mapping[str, float]) -> NDArray[np.float64]:
    """[BINS] what `tally` counted, over all batches and ranks."""
    return np.array([sums[f"{group}.{index}"] for index in range(BINS)], np.float64)


def threshold_of(counts: NDArray[np.float64], false_alarms: float) -> float:
    """Scores above it are alarms; infinite when there are too few items for so small a share, or none."""
    total = counts.sum()
    above = total - np.cumsum(counts)[:-1]
    fitting = np.flatnonzero((above + 1) / (total + 1) <= false_alarms)
    return float(EDGES[fitting[0]]) if total and len(fitting) else math.inf


def share_above(counts: NDArray[np.float64], threshold: float) -> float:
    """Share of the items whose score is above one of `EDGES`; NaN without items."""
    if math.isinf(threshold):
        return 0.0 if counts.sum() else math.nan
    place = int(np.searchsorted(EDGES, threshold))
    return float(counts[place + 1 :].sum() / counts.sum()) if counts.sum() else math.nan


def area(normal: NDArray[np.float64], anomalous: NDArray[np.float64]) -> float:
    """Chance that an anomalous item scores higher than a normal one (area under the ROC curve); equal bins count half."""
    if not normal.sum() or not anomalous.sum():
        return math.nan
    below = np.cumsum(normal) - normal
    return float((anomalous * (below + normal / 2)).sum() / (anomalous.sum() * normal.sum()))


def window_peaks(score_BT: Tensor, marked_BT: Tensor) -> Tensor:
    """The highest score of each run of marked steps."""
    before_BT = torch.nn.functional.pad(marked_BT[:, :-1], (1, 0))
    number_BT = (marked_BT & ~before_BT).flatten().cumsum(0).view(marked_BT.shape)
    count = int(number_BT.flatten()[-1]) if number_BT.numel() else 0
    peaks = score_BT.new_zeros(count)
    return peaks.scatter_reduce(0, number_BT[marked_BT] - 1, score_BT[marked_BT], "amax")


def alarm_metrics(sums: Mapping[str, float], false_alarms: float) -> dict[str, float]:
    """`threshold`, and what it does: `false_alarm_rate`, `recall`, `precision`, `f1`, `auroc`, `windows_found`.

    Those that have no items to be measured on are left out. Normal items set the threshold where none are set aside.
    """
    calibration, normal, anomalous, windows = (counts_of(group, sums) for group in GROUPS)
    threshold = threshold_of(calibration if calibration.sum() else normal, false_alarms)
    alarms, hits = share_above(normal, threshold), share_above(anomalous, threshold)
    right, wrong = hits * anomalous.sum(), alarms * normal.sum()
    metrics = {
        "threshold": threshold,
        "false_alarm_rate": alarms,
        "recall": hits,
        "precision": right / (right + wrong) if right + wrong else 0.0,
        "f1": 2 * right / (right + wrong + anomalous.sum()) if anomalous.sum() else math.nan,
        "auroc": area(normal, anomalous),
        "windows_found": share_above(windows, threshold),
    }
    if not anomalous.sum():
        del metrics["precision"]
    return {name: float(value) for name, value in metrics.items() if not math.isnan(value)}
