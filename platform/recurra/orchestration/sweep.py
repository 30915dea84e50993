"""A sweep from its file to its page. What is over is read from the runs themselves, so that it can be killed anywhere."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Literal

from recurra.config.load import dump
from recurra.data.dataset import Dataset
from recurra.errors import ConfigError, NotFoundError
from recurra.orchestration.sweep_file import SweepFile
from recurra.orchestration.sweep_trials import Trial, grace_steps, make_trials
from recurra.storage.store import Store
from recurra.storage.url import open_store
from recurra.training.callbacks.asking import ENDED_EARLY
from recurra.training.finish import RESULT
from recurra.training.lease import Lease
from recurra.training.report.sweep_page import SWEEP_REPORT, SweepLog, TrialRow, TrialState, ranked, render_sweep
from recurra.training.runs import read_events, read_json, summarise
from recurra.training.start import JOB

SWEEP = "sweep.json"
_MAY_CHANGE = ("trials", "concurrent")
_READERS = 16


@dataclass(frozen=True)
class Sweep:
    """A sweep whose file and data were looked at; nothing runs yet."""

    file: SweepFile
    trials: list[Trial]
    metric: str
    mode: Literal["min", "max"]

    @classmethod
    def prepare(cls, file: SweepFile) -> Sweep:
        """Draw the trials, and open the data that they need.

        Raises:
            ConfigError, DataError, StorageError: What the files name is not there or does not fit.
        """
        trials = make_trials(file)
        for run in {
            json.dumps([dump(trial.run.data), dump(trial.run)["task"]]): trial.run for trial in trials
        }.values():
            run.check()
        run = trials[0].run
        name, direction = run.open_task(Dataset.open(run.data.train)).objective
        if file.metric in (None, name):
            return cls(file, trials, name, file.mode or direction)
        if file.mode is None:
            raise ConfigError(
                f"metric is '{file.metric}', which the task does not judge by (that is '{name}', mode {direction}), so "
                "nobody knows whether much of it is good. Add 'mode: min' or 'mode: max', or leave metric out."
            )
        assert file.metric is not None
        return cls(file, trials, file.metric, file.mode)

    def open_store(self) -> Store:
        """Of the sweep's own prefix, beside its runs."""
        return open_store(f"{self.trials[0].run.runs.rstrip('/')}/{self.file.name}")

    def rows(self) -> list[TrialRow]:
        """Every trial as it is now, by number."""
        with ThreadPoolExecutor(_READERS) as readers:
            return list(readers.map(self._row, self.trials))

    def check_against_earlier_start(self, store: Store) -> None:
        """A sweep of this name that was started before must have been this one.

        Raises:
            ConfigError: It was another, or a run has its name.
        """
        if store.exists(JOB):
            raise ConfigError(f"{store.url} is a run. Give the sweep another name than '{self.file.name}'.")
        try:
            earlier = json.loads(store.read(SWEEP))
        except NotFoundError:
            return
        now = dump(self.file)
        for key in sorted(now.keys() - set(_MAY_CHANGE)):
            if earlier.get(key) != now[key]:
                raise ConfigError(
                    f"Sweep '{self.file.name}' was started with another '{key}'. Undo that, or give this one another "
                    f"name; {' and '.join(_MAY_CHANGE)} alone may change."
                )

    def log(self) -> SweepLog:
        """Everything that its page shows."""
        file = self.file
        assert not isinstance(file.job, str)
        space = [
            (path, ", ".join(f"{kind} {list(values)}" for kind, values in dump(domain).items() if values is not None))
            for path, domain in file.space.items()
        ]
        asha = "none: every trial makes all its updates"
        if file.asha is not None:
            asha = f"grace {grace_steps(self.trials, file.asha)} updates, reduction {file.asha.reduction:g}"
        facts = [*space, ("early stopping", asha), ("seed", str(file.seed)), ("runs", self.trials[0].run.runs)]
        return SweepLog(file.name, self.metric, self.mode, ranked(self.rows(), self.mode), facts, file.job)

    def _row(self, trial: Trial) -> TrialRow:
        store = trial.run.open_store()
        row = TrialRow(trial.name, trial.settings, "waiting", steps=trial.run.train.steps)
        if not store.exists(JOB):
            return row
        summary, result = summarise(store), read_json(store, RESULT)
        curve = _curve(read_events(store), self.metric)
        state: TrialState = "interrupted"
        if summary.state == "finished":
            state = "stopped early" if summary.reason.startswith(ENDED_EARLY) else "finished"
        elif summary.state == "failed":
            state = "diverged" if summary.reason.startswith("DivergedError") else "failed"
        elif summary.state == "running":
            state = "running"
        best = (min if self.mode == "min" else max)((value for _, value in curve), default=None)
        value = result.get("metrics", {}).get(self.metric, best) if summary.state == "finished" else best
        return replace(
            row, state=state, step=summary.step, steps=summary.steps, value=value, curve=curve, reason=summary.reason
        )


def run_sweep(sweep: Sweep, address: str | None, tell: Callable[[str], None]) -> SweepLog:
    """Make the trials that are not over, and leave the page.

    Args:
        sweep: One of this name that was interrupted is gone on with.
        address: Of the cluster; None = as `ray_launch.launch`.
        tell: Told what happens, in a line each.

    Raises:
        TrainingError: Another process runs this sweep.
        ClusterError: The cluster is not there, or has no node for a trial.
    """
    from recurra.orchestration.sweep_tune import run_trials  # Ray and Tune take seconds, which a plan does not need
    from recurra.training.ray_launch import connected

    store = sweep.open_store()
    sweep.check_against_earlier_start(store)
    with Lease(store, sweep.file.name):
        store.write(SWEEP, json.dumps(dump(sweep.file), indent=1).encode())
        rows = sweep.rows()
        over = {row.name: row for row in rows if row.over}
        todo = [trial for trial in sweep.trials if trial.name not in over]
        tell(f"{len(todo)} of {len(rows)} trials are to be made, {len(over)} are over")
        errors: dict[str, str] = {}
        if todo:
            with connected(address):
                errors = run_trials(
                    todo,
                    [row.curve for row in rows if row.over],
                    (sweep.metric, sweep.mode),
                    asha=sweep.file.asha,
                    concurrent=sweep.file.concurrent,
                    tell=tell,
                )
        log = sweep.log()
        log = replace(log, rows=[_left(row, errors.get(row.name)) for row in log.rows])
        store.write(SWEEP_REPORT, render_sweep(log).encode())
        return log


def _left(row: TrialRow, error: str | None) -> TrialRow:
    """A trial after Tune has let go of it: nothing runs any more, whatever its last sign of life says."""
    if row.over:
        return row
    if error is not None:
        return replace(row, state="failed", reason=row.reason or error)
    return replace(row, state="interrupted") if row.state == "running" else row


def _curve(events: list[dict[str, Any]], metric: str) -> list[tuple[int, float]]:
    """By step; an evaluation that was made again counts once."""
    found = {
        int(event["step"]): float(event["metrics"][metric])
        for event in events
        if event["event"] == "evaluated" and event["metrics"].get(metric) is not None
    }
    return sorted(found.items())
