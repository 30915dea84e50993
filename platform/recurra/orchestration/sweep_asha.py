"""Which trials end early: Tune's ASHA, with the trials in its rungs that were over before this process began."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from recurra.config.env import apply_ray_environment

apply_ray_environment()  # before the first import of ray

from ray.tune.experiment import Trial as TuneTrial
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler

from recurra.orchestration.sweep_file import AshaConfig
from recurra.training.callbacks.asking import ENDED_EARLY

_RUNGS = 24

Curve = list[tuple[int, float]]
"""Step and metric of each evaluation."""


def make_scheduler(
    asha: AshaConfig | None, over: Sequence[Curve], objective: tuple[str, str], grace: int
) -> TrialScheduler:
    """What says which trials end early.

    Args:
        asha: None = none does.
        over: Evaluations of trials that are over, which are judged first.
        objective: Metric, and `min` or `max`.
        grace: Updates of the first rung.
    """
    if asha is None:
        return FIFOScheduler()
    made = ASHAScheduler(
        time_attr="step",
        metric=objective[0],
        mode=objective[1],
        grace_period=grace,
        max_t=math.ceil(grace * asha.reduction**_RUNGS),  # trials may have different lengths, and end by themselves
        reduction_factor=asha.reduction,
        stop_last_trials=False,
    )
    for curve in over:
        stub = TuneTrial("over", stub=True)
        made.on_trial_add(None, stub)
        for step, value in curve:
            made.on_trial_result(None, stub, {"step": step, objective[0]: value})
    return _EndInGoodOrder(made)


class _EndInGoodOrder(FIFOScheduler):  # type: ignore[misc]
    """ASHA decides; a trial that it stops is asked to end, so that it leaves a checkpoint, a result and a report."""

    def __init__(self, asha: ASHAScheduler) -> None:
        super().__init__()
        self._asha = asha

    def set_search_properties(self, metric: str | None, mode: str | None, **spec: Any) -> bool:
        return True  # ASHA was told when it was made, since its rungs may be filled already

    def on_trial_add(self, controller: Any, trial: TuneTrial) -> None:
        self._asha.on_trial_add(controller, trial)

    def on_trial_result(self, controller: Any, trial: TuneTrial, result: dict[str, Any]) -> str:
        decision = self._asha.on_trial_result(controller, trial, result)
        if decision == TrialScheduler.STOP:
            # Calls of one actor are made in order: this one before the next step.
            trial.temporary_state.ray_actor.end.remote(f"{ENDED_EARLY} at update {result['step']}")
        return str(TrialScheduler.CONTINUE)

    def on_trial_remove(self, controller: Any, trial: TuneTrial) -> None:
        self._asha.on_trial_remove(controller, trial)
