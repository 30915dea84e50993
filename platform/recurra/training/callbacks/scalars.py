"""What a run's trackers are told: the same names and numbers for each of them."""

from __future__ import annotations

import math
from collections.abc import Callable

from recurra.training.evaluation import Evaluation
from recurra.training.step import StepResult

Warn = Callable[[str], None]


def scalars_of_step(result: StepResult) -> dict[str, float]:
    """Of one update, without what is not finite."""
    numbers = {
        "train/loss": result.loss,
        "train/learning_rate": result.learning_rate,
        "train/gradient_norm": result.gradient_norm,
        "train/padding": 1 - result.tokens / max(result.padded_tokens, 1),
    }
    return {name: value for name, value in numbers.items() if math.isfinite(value)}


def scalars_of_evaluation(evaluation: Evaluation) -> dict[str, float]:
    """Of one evaluation, without what is not finite."""
    return {f"eval/{name}": value for name, value in evaluation.metrics.items() if math.isfinite(value)}


class WarnOnce:
    """The first complaint of a tracker; the others would hide what a run has to say.

    Args:
        warn: Takes the line.
        tracker: Its name.
    """

    def __init__(self, warn: Warn, tracker: str) -> None:
        self._warn = warn
        self._tracker = tracker
        self.warned = False

    def __call__(self, error: BaseException) -> None:
        if not self.warned:
            self.warned = True
            first = str(error).strip().partition("\n")[0]
            self._warn(f"{self._tracker} does not take this run's numbers ({first}); training goes on without it")
