"""A run again, from what it left in the store: the same job, the same version of the data, the same seed, so the same
losses. What decides a run's numbers is in its prefix, which this is the proof of."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from recurra.config.load import parse
from recurra.data.dataset import Dataset
from recurra.errors import IntegrityError, TrainingError
from recurra.storage.store import Store
from recurra.storage.url import open_store
from recurra.training.comparison import LossComparison, compare_losses
from recurra.training.run import TrainRun
from recurra.training.runs import all_records, data_of, open_run, read_events, read_json
from recurra.training.start import DATA, ENVIRONMENT, JOB, environment

RERUN_OF = "rerun_of.json"
"""In a run that repeats another: its address."""


@dataclass(frozen=True)
class Rerun:
    """A run that is ready to be made again."""

    run: TrainRun
    """Under its new name, with as many workers as before, and without publishing."""
    original: Store
    differences: list[str]
    """What is not as it was then and may change the numbers: versions, processor, worker count."""

    def outcome(self) -> LossComparison:
        """The losses of the original and of the rerun, once that was made."""
        return compare_losses(all_records(self.original), all_records(self.run.open_store()))


def prepare_rerun(runs: str, name: str, new_name: str | None = None) -> Rerun:
    """Read what a run left, and write down for the new one which data it is to look at.

    Args:
        runs: Prefix of all runs.
        name: The run to repeat.
        new_name: Of the repetition; None = `<name>-rerun`, `<name>-rerun2`, ...: the first that is free.

    Raises:
        TrainingError: There is no such run, or the new name is taken by another one.
        IntegrityError: The data of that version is no longer what it was.
    """
    original = open_run(runs, name)
    values, data = read_json(original, JOB), data_of(original)
    if not data:
        raise TrainingError(f"Run '{name}' was never started on data, so there is nothing to repeat. Train it first.")
    for facts in filter(None, data.values()):
        _check_data(facts)
    values |= {"name": new_name or _free_name(runs, name), "runs": runs, "publish": None}
    workers = sorted({event["workers"] for event in read_events(original) if event["event"] == "started"})
    if workers:
        values["train"] = {**values["train"], "workers": workers[-1]}
    run = parse(values, TrainRun, source=f"{original.url}/{JOB}")
    _claim(run, original, data)
    differences = _differences(read_json(original, ENVIRONMENT), environment())
    if len(workers) > 1:
        differences.append(f"workers: {' and '.join(map(str, workers))} in turn then, {workers[-1]} now")
    return Rerun(run, original, differences)


def _check_data(facts: dict[str, Any]) -> None:
    dataset = Dataset.open(facts["url"], facts["version"])
    if dataset.digest != facts["digest"]:
        raise IntegrityError(
            f"{facts['url']} version {facts['version']} has digest {dataset.digest[:12]}, the run saw "
            f"{facts['digest'][:12]}: it was deleted and written anew. Restore that dataset; the run cannot be repeated "
            "without it."
        )


def _claim(run: TrainRun, original: Store, data: dict[str, Any]) -> None:
    """The new run's prefix says what it repeats, and which versions of the data it has to take."""
    store = run.open_store()
    if store.exists(JOB) and read_json(store, RERUN_OF).get("run") != original.url:
        raise TrainingError(f"There is a run '{run.name}' already, and it repeats no other. Give --name another one.")
    store.write(RERUN_OF, json.dumps({"run": original.url}).encode())
    store.write(DATA, json.dumps(data, indent=1).encode())


def _free_name(runs: str, name: str) -> str:
    store = open_store(runs)
    number = 1
    while store.child(new := f"{name}-rerun{number if number > 1 else ''}").exists(JOB):
        number += 1
    return new


def _differences(then: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Of what can change a sum's last bit; the host's name and its kernel do not."""
    found = [f"{key}: {then.get(key)} then, {now[key]} now" for key in ("machine",) if then.get(key) != now[key]]
    for package in ("recurra", "torch", "numpy"):
        before, after = (one.get("packages", {}).get(package) for one in (then, now))
        if before != after:
            found.append(f"{package}: {before} then, {after} now")
    before, after = (one.get("git") or {} for one in (then, now))
    if before.get("commit") != after.get("commit"):
        found.append(f"commit of Recurra: {_short(before)} then, {_short(after)} now")
    elif before.get("dirty") or after.get("dirty"):
        found.append("the source tree of Recurra had or has local changes (platform.patch)")
    return found


def _short(git: dict[str, Any]) -> str:
    return str(git.get("commit", "none"))[:12]
