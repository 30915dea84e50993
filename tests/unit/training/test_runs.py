"""What the store tells of runs, whoever started them."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from recurra.errors import TrainingError
from recurra.storage.store import Store
from recurra.storage.url import open_store
from recurra.training.callbacks.base import Callback
from recurra.training.lease import Lease
from recurra.training.runs import all_records, follow, list_runs, open_run, summarise
from recurra.training.work import train_here

from .conftest import MakeRun


class FailAtFive(Callback):
    """A callback of a user's that has a fault."""

    def stepped(self, trainer, batch, result):
        if trainer.progress.step == 5:
            raise ZeroDivisionError("a fault of the callback")
        return super().stepped(trainer, batch, result)


def test_a_finished_run_is_told_with_its_metrics(make_run: MakeRun) -> None:
    """The first look after a weekend: what came out, and was it all?"""
    run = make_run(train={"evaluate_every": 4})
    result = train_here(run)
    found = summarise(run.open_store())

    assert (found.name, found.state, found.step, found.steps) == ("a", "finished", 8, 8)
    assert found.metrics == result.metrics and found.reason == "all 8 steps are done"
    assert (found.attempts, found.workers, found.task, found.cell) == (1, 1, "language_model", "lstm")
    assert found.loss == all_records(run.open_store())[-1]["loss"]
    assert found.tokens_per_s is not None and found.tokens_per_s > 0
    assert found.started_s is not None and found.heard_s is not None and found.heard_s >= found.started_s


def test_a_run_that_failed_says_of_what(make_run: MakeRun) -> None:
    """Nobody wants to look for the log of a worker that is gone."""
    run = make_run(train={"callbacks": [f"{__name__}:FailAtFive"]})
    with pytest.raises(ZeroDivisionError):
        train_here(run)
    found = summarise(run.open_store())

    assert found.state == "failed" and found.reason == "ZeroDivisionError: a fault of the callback"


def test_a_silent_run_is_lost_and_a_living_one_runs(make_run: MakeRun) -> None:
    """A driver that was killed cannot say so: its lease is what stops being renewed."""
    run = make_run(train={"steps": 3})
    train_here(run)
    store = run.open_store()
    with Lease(store, "a"):
        assert summarise(store).state == "running"
        assert summarise(store, clock=lambda: time.time() + 3600).state == "lost"
    assert summarise(store).state == "finished"


def test_a_run_that_was_interrupted_is_stopped(make_run: MakeRun) -> None:
    """Its command ended in good order (Ctrl-C), its steps did not."""
    run = make_run()
    store = run.open_store()
    store.write("job.json", json.dumps(run.model_dump(mode="json")).encode())
    event = {"attempt": "x", "event": "started", "step": 0, "time": 100.0, "workers": 2, "steps": 8}
    store.write("events/x.jsonl", json.dumps({**event, "resumed_from": None}).encode())
    store.write("metrics/tail.jsonl", b'{"step":2,"loss":1.5,"tokens":10,"seconds":0.5,"time":101.0}\n')
    with Lease(store, "a"):
        pass
    found = summarise(store)

    assert (found.state, found.step, found.loss, found.workers) == ("stopped", 2, 1.5, 2)
    assert found.tokens_per_s == 20.0


def test_runs_are_listed_latest_first_and_anything_else_is_left_out(make_run: MakeRun, tmp_path: Path) -> None:
    """The prefix is the user's: what is no run does not break the listing."""
    for name in ("first", "second"):
        train_here(make_run(name, train={"steps": 2}))
    store = open_store(f"file://{tmp_path}/runs")
    store.write("notes.txt", b"hello")
    store.write("notes/of-mine.txt", b"hello")

    assert [run.name for run in list_runs(store.url)] == ["second", "first"]
    assert list_runs(f"file://{tmp_path}/nothing") == []
    with pytest.raises(TrainingError, match=r"There is no run 'frist' in .* Did you mean 'first'"):
        open_run(store.url, "frist")


def test_following_tells_what_changed_and_ends_with_the_run(make_run: MakeRun) -> None:
    """One line for each change, none for the looks between them, and the end is told, too."""
    run = make_run(train={"steps": 2})
    train_here(run)
    store = run.open_store()
    lease = Lease(store, "a")
    looks: list[int] = []

    def wait(seconds: float) -> None:
        looks.append(len(looks))
        if len(looks) == 3:
            write_tail(store, step=4)
        if len(looks) == 5:
            store.delete("metrics/tail.jsonl")
            lease.release()

    told = [(one.state, one.step) for one in follow(store, every_s=1.0, wait=wait)]

    assert told == [("running", 2), ("running", 4), ("finished", 2)]
    assert len(looks) == 5


def test_a_long_silence_is_broken(make_run: MakeRun) -> None:
    """Whoever watches has to see that the watching still works."""
    run = make_run(train={"steps": 2})
    train_here(run)
    lease = Lease(run.open_store(), "a")
    looks: list[float] = []

    def wait(seconds: float) -> None:
        looks.append(seconds)
        if len(looks) == 7:
            lease.release()

    told = [one.state for one in follow(run.open_store(), every_s=10.0, wait=wait, silence_s=30.0)]
    assert told == ["running", "running", "running", "finished"]


def write_tail(store: Store, *, step: int) -> None:
    record = {"step": step, "loss": 1.0, "tokens": 1, "seconds": 1.0, "time": 1.0}
    store.write("metrics/tail.jsonl", json.dumps(record).encode())
