"""Trials on Ray Tune: it places them and gives a lost one a new process; ASHA says which of them end early.

Tune keeps nothing. `Tuner.restore` would begin with empty rungs, since Tune does not save its scheduler, and it needs a
file system that every node reaches. Whatever a sweep goes on from is in the runs' own prefixes: checkpoints, evaluations,
results. Rungs are filled again from the evaluations of the trials that are over.
"""

from __future__ import annotations

import logging
import math
import queue
import shutil
import tempfile
import threading
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
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler

from recurra.config.load import dump, parse
from recurra.errors import ClusterError, ConfigError, DataError, DivergedError
from recurra.orchestration.sweep_file import AshaConfig
from recurra.orchestration.sweep_trials import Trial, grace_steps
from recurra.telemetry.fleet import FleetReporter
from recurra.telemetry.metrics import Metrics
from recurra.training.callbacks.asking import ENDED_EARLY, AskAtEvaluations
from recurra.training.lease import Lease
from recurra.training.report.sweep_page import setting_text, short_name
from recurra.training.run import TrainRun
from recurra.training.start import check_against_earlier_start, keep_command
from recurra.training.work import Surroundings, work

_RUNGS = 24
_LASTING = (DivergedError, ConfigError, DataError)
"""Errors that trying again does not cure."""
_HEARTBEAT_S = 8.0
_RESULT_S = 3.0
"""Between two lines of evaluations; every trial's first and last are told."""

Curve = list[tuple[int, float]]
"""Step and metric of each evaluation."""


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
    directory = Path(tempfile.mkdtemp(prefix="recurra-tune-"))
    teller = _Teller(trials, objective[0], tell)
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # a lost process is told of below
    runs = {trial.number: dump(trial.run) for trial in trials}
    try:
        tune.Tuner(
            tune.with_resources(tune.with_parameters(_TrialProcess, runs=runs, metric=objective[0]), resources),
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


class _TrialProcess(tune.Trainable):  # type: ignore[misc]
    """Trains one run after the other; each result is an evaluation, after which the run waits for what Tune says."""

    def setup(self, config: dict[str, Any], runs: dict[int, dict[str, Any]], metric: str) -> None:
        self._runs = {number: parse(values, TrainRun) for number, values in runs.items()}
        self._metric = metric
        self._training = _Training(self._runs[config["number"]], metric)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """The next trial in the same process, which has imported everything already."""
        self._training = _Training(self._runs[new_config["number"]], self._metric)
        return True

    def step(self) -> dict[str, Any]:
        return self._training.go_on()

    def end(self, reason: str) -> None:
        """The run, which waits now, ends in good order instead of going on."""
        self._training.ending = reason


class _Training:
    """One run, in a thread of its own.

    Args:
        run: To be trained from its last checkpoint.
        metric: Of the evaluations, that the results hold.
    """

    def __init__(self, run: TrainRun, metric: str) -> None:
        self.ending: str | None = None
        """Why the run ends after the last evaluation; None = it goes on."""
        self._run = run
        self._metric = metric
        self._results: queue.Queue[dict[str, Any] | BaseException] = queue.Queue()
        self._answers: queue.Queue[str | None] = queue.Queue()
        self._waits = False
        self._last: dict[str, Any] = {"step": 0, metric: math.nan}
        threading.Thread(target=self._train, name=run.name, daemon=True).start()

    def go_on(self) -> dict[str, Any]:
        """Let the run go on to its next evaluation, or to its end, and give what there is to say then."""
        if self._waits:
            self._answers.put(self.ending)
        found = self._results.get()
        if isinstance(found, BaseException):
            raise found
        self._waits = not found["done"]
        self._last |= found
        return dict(self._last)

    def _train(self) -> None:
        try:
            store = self._run.open_store()
            check_against_earlier_start(self._run, store)
            metrics = Metrics(run=self._run.name)
            with Lease(store, self._run.name) as lease, FleetReporter(metrics, f"trial-{self._run.name}"):
                surroundings = Surroundings(
                    emit=lambda event: None,
                    device="cuda:0" if ray.get_gpu_ids() else "cpu",
                    metrics=metrics,
                    lease=lease.number,
                    callbacks=[AskAtEvaluations(self._ask)],
                )
                work(self._run, surroundings)
        except _LASTING as exc:
            self._results.put({"done": True, "error": str(exc)})
        except BaseException as exc:  # noqa: BLE001 - the edge: Tune gives the trial another process
            self._results.put(exc)
        else:
            self._results.put({"done": True})

    def _ask(self, step: int, steps: int, metrics: dict[str, float]) -> str | None:
        if self._metric not in metrics:
            known = ", ".join(sorted(metrics))
            raise ConfigError(
                f"metric is {self._metric!r}, which the evaluations do not have. Write one of them: {known}."
            )
        self._results.put({"step": step, "steps": steps, self._metric: metrics[self._metric], "done": False})
        return self._answers.get()


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
