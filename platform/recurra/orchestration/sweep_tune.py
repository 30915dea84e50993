"""Trials on Ray Tune: it places them and gives a lost one a new process; ASHA says which of them end early.

Tune keeps nothing. `Tuner.restore` would begin with empty rungs, since Tune does not save its scheduler, and it needs a
file system that every node reaches. Whatever a sweep goes on from is in the runs' own prefixes: checkpoints, evaluations,
results. Rungs are filled again from the evaluations of the trials that are over.
"""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from recurra.config.env import TUNE_ENVIRONMENT, adopt, apply_ray_environment

apply_ray_environment()  # before the first import of ray
adopt(TUNE_ENVIRONMENT)

import ray
from ray import tune
from ray.tune.experiment import Trial as TuneTrial

from recurra.config.load import dump
from recurra.errors import ClusterError
from recurra.orchestration.sweep_asha import Curve, make_scheduler
from recurra.orchestration.sweep_file import AshaConfig
from recurra.orchestration.sweep_process import TrialProcess
from recurra.orchestration.sweep_trials import Trial, grace_steps
from recurra.training.report.sweep_page import setting_text, short_name
from recurra.training.start import keep_command

_DIRECTORY = "recurra-tune-"
_HEARTBEAT_S = 8.0
_RESULT_S = 3.0
"""Between two lines of evaluations; every trial's first and last are told."""


def run_trials(
    trials: Sequence[Trial],
    over: Sequence[Curve],
    objective: tuple[str, str],
    *,
    asha: AshaConfig | None,
    concurrent: int | None,
    tell: Callable[[str], None],
) -> dict[str, str]:
    """Train trials on the cluster that this process is connected to, each from its own last checkpoint, to their end.

    Args:
        trials: Those that are not over.
        over: What was measured of those that are, as the rungs' memory.
        objective: Metric, and `min` or `max`.
        asha: None = no trial ends early.
        concurrent: Trials at a time at most; None = as many as there is room for.
        tell: Told what happens, in a line each.

    Returns:
        Name -> error, of the trials whose process ended by an error of another kind than a run's own.
    """
    resources = _resources(trials)
    directory = _make_directory()
    teller = _Teller(trials, objective[0], tell)
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # a lost process is told of below
    runs = {trial.number: dump(trial.run) for trial in trials}
    try:
        tune.Tuner(
            tune.with_resources(tune.with_parameters(TrialProcess, runs=runs, metric=objective[0]), resources),
            param_space={"number": tune.grid_search([trial.number for trial in trials])},
            tune_config=tune.TuneConfig(
                metric=objective[0],
                mode=objective[1],
                scheduler=make_scheduler(asha, over, objective, grace_steps(trials, asha)),
                max_concurrent_trials=concurrent,
                reuse_actors=True,
                trial_name_creator=lambda trial: f"trial-{trial.config['number']:03d}",
                trial_dirname_creator=lambda trial: f"trial-{trial.config['number']:03d}",
            ),
            run_config=tune.RunConfig(
                name="sweep",
                storage_path=str(directory),  # nothing that is needed again: see above
                verbose=0,
                callbacks=[teller],
                failure_config=tune.FailureConfig(max_failures=trials[0].run.train.max_failures),
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            ),
        ).fit()
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    return teller.errors


def _make_directory() -> Path:
    """An empty one that carries our pid; those of sweeps that were killed on this machine go."""
    for left in Path(tempfile.gettempdir()).glob(f"{_DIRECTORY}*-*"):
        pid = left.name.removeprefix(_DIRECTORY).partition("-")[0]
        if left.stat().st_uid == os.getuid() and not Path(f"/proc/{pid}").exists() and Path("/proc").exists():
            shutil.rmtree(left, ignore_errors=True)
    return Path(tempfile.mkdtemp(prefix=f"{_DIRECTORY}{os.getpid()}-"))


class _Teller(tune.Callback):  # type: ignore[misc]
    """A line for whatever happens to a trial, and one when nothing has for a while."""

    def __init__(self, trials: Sequence[Trial], metric: str, tell: Callable[[str], None]) -> None:
        self._trials = {trial.number: trial for trial in trials}
        self._metric = metric
        self._tell = tell
        self._told_s = time.monotonic()
        self._heard: set[str] = set()
        self.errors: dict[str, str] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles a copy, which nobody reads; `tell` may hold what cannot be pickled

    def on_trial_start(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        one = self._trials[trial.config["number"]]
        keep_command(one.run.open_store())
        settings = ", ".join(
            f"{short_name(path, list(one.settings))} {setting_text(value)}" for path, value in one.settings.items()
        )
        self._say(f"{one.name}  starts with {settings}")

    def on_trial_result(
        self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, result: dict[str, Any], **info: Any
    ) -> None:
        one = self._trials[trial.config["number"]]
        if error := result.get("error"):
            self._say(f"{one.name}  failed: {error}")
        elif not result["done"] and self._is_due(one.name, result):
            at = f"{result['step']}/{result['steps']}"
            self._say(f"{one.name}  {at}  {self._metric} {setting_text(result[self._metric])}")

    def on_trial_complete(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        ended = sum(other.status == TuneTrial.TERMINATED for other in trials if other is not trial) + 1
        name = self._trials[trial.config["number"]].name
        self._say(f"{name}  is over, the {ended}. of {len(self._trials)} that were to be made")

    def on_trial_error(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        name = self._trials[trial.config["number"]].name
        lines = str(trial.get_error() or "its process was lost").strip().splitlines()
        self.errors[name] = lines[-1]
        self._say(f"{name}  failed: {lines[-1]}")

    def on_trial_recover(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        self._say(f"{self._trials[trial.config['number']].name}  lost its process; it goes on from its last checkpoint")

    def on_step_end(self, iteration: int, trials: list[TuneTrial], **info: Any) -> None:
        if time.monotonic() - self._told_s >= _HEARTBEAT_S:
            running = [self._trials[t.config["number"]].name for t in trials if t.status == TuneTrial.RUNNING]
            waiting = sum(trial.status == TuneTrial.PENDING for trial in trials)
            shown = ", ".join(running) if running else "none yet; the cluster makes room or starts processes"
            self._say(f"running: {shown}; waiting: {waiting}")

    def _is_due(self, name: str, result: dict[str, Any]) -> bool:
        first = name not in self._heard
        self._heard.add(name)
        return first or result["step"] >= result["steps"] or time.monotonic() - self._told_s >= _RESULT_S

    def _say(self, line: str) -> None:
        self._told_s = time.monotonic()
        self._tell(line)


def _resources(trials: Sequence[Trial]) -> dict[str, float]:
    """Of any one trial.

    Raises:
        ClusterError: The cluster has no node for it, and would let it wait for ever.
    """
    total = ray.cluster_resources()
    wanted = [trial.run.train for trial in trials]
    gpu = any(one.gpu is True or (one.gpu == "auto" and total.get("GPU", 0) >= 1) for one in wanted)
    need = {"CPU": float(max(one.threads for one in wanted)), **({"GPU": 1.0} if gpu else {})}
    for name, amount in need.items():
        if amount > total.get(name, 0):
            raise ClusterError(
                f"A trial needs {amount:g} {name} (train.threads, train.gpu), the cluster has {total.get(name, 0):g}. "
                "Ask for less, or add nodes."
            )
    return need
