"""The process of a trial: a run on the ordinary road, that Tune asks after each evaluation whether it goes on."""

from __future__ import annotations

import math
import queue
import threading
from typing import Any

from recurra.config.env import apply_ray_environment

apply_ray_environment()  # before the first import of ray

import ray
from ray import tune

from recurra.config.load import parse
from recurra.errors import ConfigError, DataError, DivergedError
from recurra.telemetry.fleet import FleetReporter
from recurra.telemetry.metrics import Metrics
from recurra.training.callbacks.asking import AskAtEvaluations
from recurra.training.lease import Lease
from recurra.training.run import TrainRun
from recurra.training.start import check_against_earlier_start
from recurra.training.work import Surroundings, work

_LASTING = (DivergedError, ConfigError, DataError)
"""Errors that trying again does not cure."""


class TrialProcess(tune.Trainable):  # type: ignore[misc]
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
