"""Notices that no step ends any more, and writes down what every thread was doing."""

from __future__ import annotations

import sys
import threading
import time
import traceback
from collections.abc import Callable

from recurra.data.batch import Batch
from recurra.errors import StorageError
from recurra.storage.store import Store
from recurra.training.callbacks.base import Callback
from recurra.training.evaluation import Evaluation
from recurra.training.events import RunEvent
from recurra.training.step import StepResult
from recurra.training.trainer import Due, Trainer


class WatchForStalls(Callback):
    """On every rank: after `train.guard.stall` seconds without a sign of life the stacks go to `stalls/` in the store.

    Args:
        store: Of the run.
        attempt: Names the attempt in the key.
        rank: Names this process in the key.
        emit: Told of a stall.
        clock: Seconds from any origin.
    """

    def __init__(
        self,
        store: Store,
        *,
        attempt: str,
        rank: int,
        emit: Callable[[RunEvent], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._who = f"{attempt}-rank{rank:05d}"
        self._emit = emit
        self._clock = clock
        self._alive_s = clock()
        self._stalls = 0
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None

    def started(self, trainer: Trainer) -> None:
        limit_s = trainer.config.guard.stall
        self._alive_s = self._clock()
        self._thread = threading.Thread(target=self._watch, args=(limit_s,), name="stall watch", daemon=True)
        self._thread.start()

    def stepped(self, trainer: Trainer, batch: Batch, result: StepResult) -> Due:
        self._alive_s = self._clock()
        return Due()

    def evaluating(self, trainer: Trainer, done: int) -> None:
        self._alive_s = self._clock()

    def evaluated(self, trainer: Trainer, evaluation: Evaluation, improved: bool) -> Due:
        self._alive_s = self._clock()
        return Due()

    def copied(self, trainer: Trainer, blocked_s: float) -> None:
        self._alive_s = self._clock()

    def closed(self) -> None:
        self._closing.set()
        if self._thread is not None:
            self._thread.join()

    def check(self, limit_s: float) -> bool:
        """Write the stacks if the last sign of life is older than `limit_s`; whether they were written."""
        silent_s = self._clock() - self._alive_s
        if silent_s < limit_s:
            return False
        self._stalls += 1
        key = f"stalls/{self._who}-{self._stalls:03d}.txt"
        try:
            self._store.write(key, stacks_of_all_threads().encode())
        except StorageError as exc:
            key = f"nowhere, since the store does not take it: {exc}"
        self._emit(RunEvent("warning", f"no step for {silent_s:.0f} s; the stacks of all threads are in {key}"))
        self._alive_s = self._clock()
        return True

    def _watch(self, limit_s: float) -> None:
        while not self._closing.wait(min(limit_s / 4, 5.0)):
            self.check(limit_s)


def stacks_of_all_threads() -> str:
    """A stack trace of each thread of this process, with the threads' names."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    parts = []
    for ident, frame in sys._current_frames().items():
        parts.append(f"--- {names.get(ident, 'unknown thread')}\n{''.join(traceback.format_stack(frame))}")
    return "\n".join(parts)
