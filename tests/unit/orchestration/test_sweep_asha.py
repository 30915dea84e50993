"""Which trials ASHA ends, with the scheduler that a sweep hands to Tune and trials that only report numbers."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from recurra.orchestration.sweep_asha import Curve, make_scheduler
from recurra.orchestration.sweep_file import AshaConfig


@dataclass
class Reporter:
    """What Tune keeps of a trial, as far as a scheduler looks at it."""

    trial_id: str
    ended: list[str] = field(default_factory=list)

    @property
    def temporary_state(self) -> Any:
        return SimpleNamespace(ray_actor=SimpleNamespace(end=SimpleNamespace(remote=self.ended.append)))


def report(over: list[Curve], values: dict[str, Curve], mode: str = "min") -> dict[str, list[str]]:
    """Why each trial was asked to end; trials report step by step, in the order of their names."""
    scheduler = make_scheduler(AshaConfig(reduction=2.0), over, ("loss", mode), grace=10)
    trials = {name: Reporter(name) for name in values}
    for trial in trials.values():
        scheduler.on_trial_add(None, trial)
    for step in sorted({step for curve in values.values() for step, _ in curve}):
        for name, curve in values.items():
            if step in dict(curve) and not trials[name].ended:
                result = {"step": step, "loss": dict(curve)[step]}
                assert scheduler.on_trial_result(None, trials[name], result) == "CONTINUE"
    return {name: trial.ended for name, trial in trials.items()}


def test_a_trial_that_is_worse_than_most_at_a_rung_is_asked_to_end() -> None:
    """It ends in good order, with a checkpoint and a report, so that Tune itself never stops one."""
    ended = report([], {"a": [(10, 1.0), (20, 0.5)], "b": [(10, 2.0)], "c": [(10, 0.5), (20, 0.9)]})
    assert ended == {
        "a": [],
        "b": ["ended early by the sweep at update 10"],
        "c": ["ended early by the sweep at update 20"],
    }


def test_before_the_grace_period_nobody_ends() -> None:
    """The first updates say little."""
    assert report([], {"a": [(5, 1.0)], "b": [(5, 9.0)]}) == {"a": [], "b": []}


def test_much_may_be_good() -> None:
    """Accuracy, BLEU."""
    assert report([], {"a": [(10, 0.9)], "b": [(10, 0.2)]}, mode="max")["b"] != []


def test_trials_that_are_over_go_on_setting_the_bar() -> None:
    """A sweep that was killed must not begin with empty rungs: the next bad trial would pass as the best so far."""
    assert report([], {"a": [(10, 5.0)]})["a"] == []
    assert report([[(10, 1.0), (20, 0.4)]], {"a": [(10, 5.0)]})["a"] != []
    assert report([[(10, 1.0), (20, 0.4)]], {"a": [(10, 0.9), (20, 0.3)]})["a"] == []
