"""Runs inside training workers: writes down which sequences each update saw, and which process made it."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

from recurra.data.batch import Batch
from recurra.training.callbacks.base import Callback
from recurra.training.in_flight import Saved
from recurra.training.step import StepResult
from recurra.training.trainer import Due, Trainer


class Witness(Callback):
    """Appends a line an update to `$WITNESS_DIR/<run>-<rank>-<pid>.jsonl`."""

    def stepped(self, trainer: Trainer, batch: Batch, result: StepResult) -> Due:
        file = Path(os.environ["WITNESS_DIR"], f"{trainer.name}-{trainer.ranks.rank}-{os.getpid()}.jsonl")
        record = {
            "step": trainer.progress.step,
            "epoch": batch.epoch,
            "ids": batch.ids.tolist(),
            "pid": os.getpid(),
            "resumed_from": trainer.resumed_from,
        }
        with file.open("a") as out:
            out.write(json.dumps(record) + "\n")
        return Due()


class Held(Callback):
    """Rank 1 waits to be killed behind each update that has a file `$WITNESS_DIR/<run>-hold-<step>`. It takes the file
    with it: the process that comes by that update next goes on. Checkpoints in flight are not held up."""

    def stepped(self, trainer: Trainer, batch: Batch, result: StepResult) -> Due:
        if trainer.ranks.rank != 1:
            return Due()
        try:
            Path(os.environ["WITNESS_DIR"], f"{trainer.name}-hold-{trainer.progress.step}").unlink()
        except FileNotFoundError:
            return Due()
        time.sleep(300)
        raise TimeoutError("nobody came to kill this process")


class Slow(Callback):
    """Is slow until there is a checkpoint, so that a node can be taken away meanwhile."""

    def __init__(self) -> None:
        self._pause_s = 0.1

    def saved(self, trainer: Trainer, saved: Saved) -> None:
        self._pause_s = 0.0

    def stepped(self, trainer: Trainer, batch: Batch, result: StepResult) -> Due:
        time.sleep(self._pause_s)
        return Due()


class Hang(Callback):
    """Rank 1 stands still at the third update, and so does whoever waits for it, until `$WITNESS_DIR/go-on` is there."""

    def stepped(self, trainer: Trainer, batch: Batch, result: StepResult) -> Due:
        if trainer.progress.step == 3 and trainer.ranks.rank == 1:
            while not Path(os.environ["WITNESS_DIR"], "go-on").exists():
                time.sleep(0.05)
        return Due()


class Wrong(Callback):
    """A fault that comes again at every attempt."""

    def stepped(self, trainer: Trainer, batch: Batch, result: StepResult) -> Due:
        from recurra.errors import DivergedError

        raise DivergedError("the loss of this test is not finite")
