"""Every event of a run, doing nothing. A callback overrides those that concern it."""

from __future__ import annotations

import importlib
from collections.abc import Callable

from recurra.data.batch import Batch
from recurra.errors import ConfigError
from recurra.training.evaluation import Evaluation
from recurra.training.in_flight import Saved
from recurra.training.result import RunResult
from recurra.training.step import StepResult, Wishes
from recurra.training.trainer import Due, Trainer


class Callback:
    """One concern of a run, on every rank. Events come in the order of the methods below."""

    def started(self, trainer: Trainer) -> None:
        """Everything is built, and restored from a checkpoint if there was one."""

    def wishes(self) -> Wishes:
        """What this rank wants after the coming update; all ranks then get it."""
        return Wishes()

    def stepped(self, trainer: Trainer, batch: Batch, result: StepResult) -> Due:
        """An update was made; what is due now. Must give the same on all ranks."""
        return Due()

    def evaluating(self, trainer: Trainer, done: int) -> None:
        """A batch of an evaluation was computed, the `done`-th."""

    def evaluated(self, trainer: Trainer, evaluation: Evaluation, improved: bool) -> Due:
        """An evaluation ended; `improved` = the best so far. Must give the same on all ranks."""
        return Due()

    def saving(self, trainer: Trainer) -> Callable[[], None] | None:
        """The state is about to be copied for a checkpoint; what is returned is called before its commit.

        Rank 0 calls it, from another thread while training goes on; without it the checkpoint does not exist.
        """
        return None

    def copied(self, trainer: Trainer, blocked_s: float) -> None:
        """The state was copied, after training stood still for so long; the checkpoint is in flight now."""

    def saved(self, trainer: Trainer, saved: Saved) -> None:
        """A checkpoint has become durable, most often some updates after it was `copied`."""

    def finished(self, trainer: Trainer, reason: str) -> None:
        """The run has ended as it should; `reason` says why now."""

    def failed(self, trainer: Trainer, error: BaseException) -> None:
        """The loop is left by an exception, which goes on behind the last callback."""

    def closed(self) -> None:
        """The last event of every loop, however it ended: release what `started` took."""

    def reported(self, result: RunResult) -> None:
        """After the loop of a run that has ended as it should, on rank 0: its result and its report are in the store."""


def load_callback(path: str) -> Callback:
    """A callback of the user's own, by `package.module:Class`.

    Raises:
        ConfigError: There is no such class, or it is no Callback.
    """
    module, _, name = path.partition(":")
    try:
        made = vars(importlib.import_module(module))[name]()
    except (ImportError, KeyError, TypeError, ValueError) as exc:
        raise ConfigError(
            f"train.callbacks has {path!r}, which cannot be loaded ({type(exc).__name__}: {exc}). "
            "Write package.module:Class of a class without arguments that is installed on the workers."
        ) from exc
    if not isinstance(made, Callback):
        raise ConfigError(f"train.callbacks has {path!r}, which is no recurra.training.callbacks.base.Callback.")
    return made
