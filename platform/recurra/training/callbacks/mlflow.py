"""A run in MLflow: its job as parameters, its numbers as metrics, its report as an artifact.

The id of MLflow's run is kept in the run's prefix, so that an attempt that resumes goes on in it. Everything is sent from a
thread: a tracker that is slow or away costs the training nothing, and is complained of once.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import queue
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from recurra.config.env import MLFLOW_ENVIRONMENT, MlflowSettings, adopt, mlflow_settings
from recurra.data.batch import Batch
from recurra.errors import ConfigError, NotFoundError
from recurra.storage.store import Store
from recurra.training.callbacks.base import Callback
from recurra.training.callbacks.scalars import Warn, WarnOnce, scalars_of_evaluation, scalars_of_step
from recurra.training.evaluation import Evaluation
from recurra.training.report.page import REPORT
from recurra.training.result import RunResult
from recurra.training.step import StepResult
from recurra.training.trainer import Due, Trainer

RUN_ID = "mlflow.json"
LAST_WAIT_S = 30.0
"""At the end of a run, for what is still to be sent."""
_WAITING = 10_000
"""Messages that wait for a slow tracker at most; further ones are dropped."""
_PARAMETERS, _LONGEST = 100, 6000
"""Of one request, and characters of one value, as MLflow limits them."""


class LogToMlflow(Callback):
    """Sends evaluations, and an update every few seconds.

    Args:
        store: Of the run.
        job: The resolved job.
        warn: Told once when MLflow does not answer.
        every_s: Seconds between two updates that are sent.
        clock: Seconds since 1970.

    Raises:
        ConfigError: MLflow is not installed, or nobody said where it is.
    """

    def __init__(
        self,
        store: Store,
        *,
        job: Mapping[str, Any],
        warn: Warn,
        every_s: float = 5.0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        check_mlflow()
        settings = mlflow_settings()
        if settings is None:
            raise ConfigError(
                "train.loggers has mlflow, but MLFLOW_TRACKING_URI is not set where the training runs. Set it on every "
                "node, such as http://mlflow:5000, or leave mlflow out."
            )
        self._store = store
        self._job = job
        self._settings = settings
        self._warn = warn
        self._every_s = every_s
        self._clock = clock
        self._sent_s = 0.0
        self._sender: _Sender | None = None

    def started(self, trainer: Trainer) -> None:
        self._sender = _Sender(self._settings, self._store, self._job, WarnOnce(self._warn, "MLflow"))

    def stepped(self, trainer: Trainer, batch: Batch, result: StepResult) -> Due:
        if self._clock() - self._sent_s >= self._every_s or trainer.progress.step == trainer.steps:
            self._sent_s = self._clock()
            self._send(scalars_of_step(result), trainer.progress.step)
        return Due()

    def evaluated(self, trainer: Trainer, evaluation: Evaluation, improved: bool) -> Due:
        self._send(scalars_of_evaluation(evaluation), trainer.progress.step)
        return Due()

    def failed(self, trainer: Trainer, error: BaseException) -> None:
        if self._sender is not None:
            self._sender.put(lambda client, run: client.set_terminated(run, "FAILED"))
            self._sender.close()

    def reported(self, result: RunResult) -> None:
        assert self._sender is not None
        report = self._store.read(REPORT).decode()
        self._sender.put(lambda client, run: client.log_text(run, report, REPORT))
        self._sender.put(lambda client, run: client.log_dict(run, result.to_json(), "result.json"))
        self._sender.put(lambda client, run: client.set_terminated(run, "FINISHED"))
        self._sender.close()

    def _send(self, scalars: dict[str, float], step: int) -> None:
        assert self._sender is not None
        moment_ms = round(self._clock() * 1000)

        def log(client: Any, run: str) -> None:
            metric = importlib.import_module("mlflow.entities").Metric
            client.log_batch(run, metrics=[metric(name, value, moment_ms, step) for name, value in scalars.items()])

        self._sender.put(log)


class _Sender:
    """One thread, which opens MLflow's run and then sends one message after the other."""

    def __init__(self, settings: MlflowSettings, store: Store, job: Mapping[str, Any], complain: WarnOnce) -> None:
        self._settings = settings
        self._store = store
        self._job = job
        self._complain = complain
        self._messages: queue.Queue[Callable[[Any, str], None] | None] = queue.Queue(_WAITING)
        self._closing = False
        self._thread = threading.Thread(target=self._work, name="mlflow", daemon=True)
        self._thread.start()

    def put(self, message: Callable[[Any, str], None]) -> None:
        """Send it when its turn comes; never waits."""
        try:
            self._messages.put_nowait(message)
        except queue.Full:
            self._complain(TimeoutError("it is too slow"))

    def close(self) -> None:
        """Wait for what is still to be sent, but not for a tracker that has failed already."""
        self._closing = True
        try:
            self._messages.put(None, timeout=LAST_WAIT_S)
        except queue.Full:
            return
        self._thread.join(LAST_WAIT_S)
        if self._thread.is_alive():
            self._complain(TimeoutError(f"it did not take the last of them within {LAST_WAIT_S:g} s"))

    def _work(self) -> None:
        client, run = None, ""
        while (message := self._messages.get()) is not None:
            if self._closing and self._complain.warned:
                continue
            try:
                if client is None:
                    adopt(MLFLOW_ENVIRONMENT)
                    client = importlib.import_module("mlflow").MlflowClient(self._settings.tracking_uri)
                run = run or self._open(client)
                message(client, run)
            except Exception as exc:  # noqa: BLE001 - the edge: whatever a tracker does, the training goes on
                self._complain(exc)

    def _open(self, client: Any) -> str:
        """The run of an earlier attempt, or a new one."""
        if known := self._known(client):
            client.update_run(known, status="RUNNING")
            return known
        name = self._settings.experiment
        experiment = client.get_experiment_by_name(name)
        number = experiment.experiment_id if experiment else client.create_experiment(name)
        tags = {"recurra.run": str(self._job["name"]), "recurra.url": self._store.url}
        run = str(client.create_run(number, run_name=str(self._job["name"]), tags=tags).info.run_id)
        self._store.write(RUN_ID, json.dumps({"run_id": run}).encode())
        param = importlib.import_module("mlflow.entities").Param
        values = [param(path, str(value)[:_LONGEST]) for path, value in flat(self._job).items()]
        for first in range(0, len(values), _PARAMETERS):
            client.log_batch(run, params=values[first : first + _PARAMETERS])
        return run

    def _known(self, client: Any) -> str | None:
        try:
            run = str(json.loads(self._store.read(RUN_ID))["run_id"])
        except NotFoundError:
            return None
        errors = importlib.import_module("mlflow.exceptions")
        try:
            client.get_run(run)
        except errors.MlflowException as exc:
            if exc.error_code == "RESOURCE_DOES_NOT_EXIST":
                return None  # another server than before, or deleted there
            raise
        return run


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted path -> value, of all that is no section."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        path = f"{prefix}{name}"
        found |= flat(value, f"{path}.") if isinstance(value, Mapping) else {path: value}
    return found


def check_mlflow() -> None:
    """Whether MLflow is installed.

    Raises:
        ConfigError: It is not.
    """
    if importlib.util.find_spec("mlflow") is None:
        raise ConfigError(
            "train.loggers has mlflow, which is not installed. "
            "Run: pip install 'recurra[tracking]', or leave mlflow out."
        )
