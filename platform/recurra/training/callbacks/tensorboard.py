"""TensorBoard event files in the run's prefix: `tensorboard --logdir s3://bucket/runs/NAME/tensorboard`.

One file an attempt. A resume tells TensorBoard to forget the steps behind its checkpoint, since they are made again.
"""

from __future__ import annotations

import importlib
import json
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from recurra.data.batch import Batch
from recurra.errors import ConfigError, StorageError
from recurra.storage.store import Store
from recurra.training.callbacks.base import Callback
from recurra.training.callbacks.scalars import Warn, WarnOnce, scalars_of_evaluation, scalars_of_step
from recurra.training.evaluation import Evaluation
from recurra.training.step import StepResult
from recurra.training.trainer import Due, Trainer

FOLDER = "tensorboard"


class WriteTensorBoard(Callback):
    """Writes a file beside the run, and puts it into the store before each checkpoint, at the end, and now and then.

    Args:
        store: Of the run.
        attempt: Part of the file's name.
        job: The resolved job, shown as text.
        warn: Told once when the store does not take the file.
        every_s: Seconds between two uploads while nothing else happens.
        clock: Seconds from any origin.

    Raises:
        ConfigError: tensorboardX is not installed.
    """

    def __init__(
        self,
        store: Store,
        *,
        attempt: str,
        job: dict[str, Any],
        warn: Warn,
        every_s: float = 30.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._library = tensorboard_library()
        self._store = store
        self._attempt = attempt
        self._job = job
        self._complain = WarnOnce(warn, "TensorBoard's folder in the store")
        self._every_s = every_s
        self._clock = clock
        self._uploaded_s = 0.0
        self._writer: Any = None
        self._directory: Path | None = None
        self._key = ""

    def started(self, trainer: Trainer) -> None:
        self._directory = Path(tempfile.mkdtemp(prefix="recurra-tensorboard-"))
        purge = None if trainer.resumed_from is None else trainer.resumed_from + 1
        self._writer = self._library.SummaryWriter(str(self._directory), purge_step=purge)
        self._key = self._next_key()
        if purge is None:
            self._writer.add_text("job", f"```json\n{json.dumps(self._job, indent=1)}\n```", 0)
        self._uploaded_s = self._clock()

    def stepped(self, trainer: Trainer, batch: Batch, result: StepResult) -> Due:
        self._add(scalars_of_step(result), trainer.progress.step)
        if self._clock() - self._uploaded_s >= self._every_s:
            self._upload()
        return Due()

    def evaluated(self, trainer: Trainer, evaluation: Evaluation, improved: bool) -> Due:
        self._add(scalars_of_evaluation(evaluation), trainer.progress.step)
        return Due()

    def saving(self, trainer: Trainer) -> None:
        self._upload()

    def finished(self, trainer: Trainer, reason: str) -> None:
        self._upload()

    def failed(self, trainer: Trainer, error: BaseException) -> None:
        if self._writer is not None:
            self._upload()

    def closed(self) -> None:
        if self._writer is not None:
            self._writer.close()
        if self._directory is not None:
            shutil.rmtree(self._directory, ignore_errors=True)

    def _next_key(self) -> str:
        """TensorBoard reads files in the order of their names, which the writer's own, of seconds, does not always keep."""
        try:
            earlier = sum(1 for _ in self._store.list(f"{FOLDER}/"))
        except StorageError as exc:
            self._complain(exc)
            earlier = 0
        return f"{FOLDER}/events.out.tfevents.{earlier:06d}.{self._attempt}"

    def _add(self, scalars: dict[str, float], step: int) -> None:
        for name, value in scalars.items():
            self._writer.add_scalar(name, value, step)

    def _upload(self) -> None:
        assert self._directory is not None
        self._writer.flush()
        try:
            for file in self._directory.iterdir():  # one
                self._store.write(self._key, file.read_bytes())
        except StorageError as exc:
            self._complain(exc)
        self._uploaded_s = self._clock()


def tensorboard_library() -> Any:
    """The writer of event files.

    Raises:
        ConfigError: It is not installed.
    """
    try:
        return importlib.import_module("tensorboardX")
    except ImportError as exc:
        raise ConfigError(
            "train.loggers has tensorboard, which needs the library 'tensorboardX', and it is not installed. "
            "Run: pip install 'recurra[tracking]', or leave tensorboard out."
        ) from exc
