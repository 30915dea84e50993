"""The trackers of a job file's `train.loggers`."""

from __future__ import annotations

from recurra.config.load import dump
from recurra.storage.store import Store
from recurra.training.callbacks.base import Callback
from recurra.training.callbacks.mlflow import LogToMlflow
from recurra.training.callbacks.scalars import Warn
from recurra.training.callbacks.tensorboard import WriteTensorBoard
from recurra.training.run import TrainRun


def make_loggers(run: TrainRun, store: Store, *, attempt: str, warn: Warn) -> list[Callback]:
    """One callback a tracker, for rank 0.

    Raises:
        ConfigError: A library is not installed, or MLflow's address is not known.
    """
    made: list[Callback] = []
    for name in dict.fromkeys(run.train.loggers):
        if name == "tensorboard":
            made.append(WriteTensorBoard(store, attempt=attempt, job=dump(run), warn=warn))
        else:
            made.append(LogToMlflow(store, job=dump(run), warn=warn))
    return made
