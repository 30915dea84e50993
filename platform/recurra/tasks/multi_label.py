"""Several labels at once for one sequence: each is decided by itself, by a sigmoid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from recurra.errors import RequestError
from recurra.tasks.base import Loss
from recurra.tasks.spans import f1

NAMED_SCORES = 32
"""With more labels the F1 of each is left out of the metrics; they still make the macro average."""


def multi_label_loss(outputs: Tensor, truth_BK: Tensor, weight_B: Tensor, smoothing: float) -> Loss:
    """Binary cross entropy in nats, mean over labels, over sequences by weight; counts for F1.

    Args:
        outputs: [B, K] logits.
        truth_BK: 1 where a sequence has the label.
        weight_B: 0 for filler rows.
        smoothing: Share of each decision's target that is spread over yes and no.
    """
    target_BK = truth_BK.float()
    soft_BK = target_BK * (1 - smoothing) + smoothing / 2
    losses_B = functional.binary_cross_entropy_with_logits(outputs, soft_BK, reduction="none").mean(1)
    with torch.no_grad():
        hard_B = functional.binary_cross_entropy_with_logits(outputs, target_BK, reduction="none").mean(1)
        guess_BK = (outputs > 0).float()
        weight_B1 = weight_B[:, None]
        sums = {
            "nll": (weight_B * hard_B).sum(),
            "right": (weight_B * (guess_BK == target_BK).all(1)).sum(),
            **_indexed("hits", (weight_B1 * guess_BK * target_BK).sum(0)),
            **_indexed("guesses", (weight_B1 * guess_BK).sum(0)),
            **_indexed("truths", (weight_B1 * target_BK).sum(0)),
        }
    return Loss(total=(weight_B * losses_B).sum(), count=weight_B.sum(), sums=sums)


def multi_label_scores(labels: Sequence[str], sums: Mapping[str, float]) -> dict[str, float]:
    """`micro_f1` over all decisions, `macro_f1` over the labels that occur in truth or guess, and `f1.<label>` of each."""
    counts = np.array([[sums[f"{name}.{k}"] for name in ("hits", "guesses", "truths")] for k in range(len(labels))])
    each = {label: f1(*row) for label, row in zip(labels, counts.tolist(), strict=True) if row[1] + row[2] > 0}
    scores = {
        "micro_f1": f1(*counts.sum(0).tolist()),
        "macro_f1": float(np.mean(list(each.values()))) if each else 0.0,
    }
    if len(labels) <= NAMED_SCORES:
        scores |= {f"f1.{label}": score for label, score in each.items()}
    return scores


def multi_label_answer(
    output: NDArray[np.float32], labels: Sequence[str], options: Mapping[str, Any]
) -> dict[str, Any]:
    """The labels whose probability is above `threshold` (option, 0.5), likeliest first, and the probability of each label."""
    threshold = options.get("threshold", 0.5)
    if isinstance(threshold, bool) or not isinstance(threshold, int | float) or not 0 <= threshold <= 1:
        raise RequestError(
            f"'threshold' is {threshold!r}. Send a number from 0 to 1.", code="out_of_range", param="threshold"
        )
    scores = 1 / (1 + np.exp(-np.clip(output.astype(np.float64), -500, 500)))
    order = np.argsort(-scores, kind="stable")
    return {
        "labels": [labels[k] for k in order if scores[k] > threshold],
        "scores": {labels[k]: float(scores[k]) for k in order},
    }


def _indexed(name: str, values_K: Tensor) -> dict[str, Tensor]:
    return {f"{name}.{index}": value for index, value in enumerate(values_K.unbind())}
