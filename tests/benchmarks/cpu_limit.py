"""Ends a run after so much CPU time: on a busy machine, wall-clock time says little about how much was learned."""

import os
import time

from recurra.training.callbacks.base import Callback
from recurra.training.trainer import Due

LIMIT = "BENCH_CPU_SECONDS"
"""Environment variable of the limit, because callbacks are built without arguments."""


class StopAfterCpuTime(Callback):
    """Counts this process's seconds on all its threads; the run ends evaluated and saved."""

    def started(self, trainer):
        self._limit_s = float(os.environ[LIMIT])
        self._start_s = time.process_time()

    def stepped(self, trainer, batch, result):
        if time.process_time() - self._start_s < self._limit_s:
            return Due()
        return Due(evaluate=trainer.evaluation is not None, save=True, end=f"{self._limit_s:g} s of CPU are used up")
