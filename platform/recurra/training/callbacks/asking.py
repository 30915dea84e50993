"""Whether a run is worth going on with, asked of somebody who sees other runs, too."""

from __future__ import annotations

from collections.abc import Callable

from recurra.training.callbacks.base import Callback
from recurra.training.evaluation import Evaluation
from recurra.training.trainer import Due, Trainer

ENDED_EARLY = "ended early by the sweep"
"""How the reason begins of a run that a sweep ended before its last update."""

Ask = Callable[[int, int, dict[str, float]], str | None]
"""Told of step, steps and metrics; gives why the run ends now, or None."""


class AskAtEvaluations(Callback):
    """Tells of every evaluation, and waits for the answer. For runs on one rank.

    Args:
        ask: An answer that ends the run ends it in good order: saved, evaluated, reported on.
    """

    def __init__(self, ask: Ask) -> None:
        self._ask = ask

    def evaluated(self, trainer: Trainer, evaluation: Evaluation, improved: bool) -> Due:
        reason = self._ask(trainer.progress.step, trainer.steps, evaluation.metrics)
        return Due() if reason is None else Due(save=True, end=reason)
