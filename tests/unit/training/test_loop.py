"""The law of training: killed at step k, it ends as if nothing had happened; and the number of ranks changes nothing."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest
import torch

from recurra.data.batch import Batch
from recurra.training.callbacks.base import Callback
from recurra.training.checkpoint import Checkpoints, Loaded
from recurra.training.ranks import Ranks, SingleRank
from recurra.training.run import TrainRun
from recurra.training.step import StepResult
from recurra.training.trainer import Due, Trainer
from recurra.training.work import Surroundings, work

MODELS = {
    "lstm": {"cell": "lstm", "layers": 2},
    "gru": {"cell": "gru"},
    "rnn": {"cell": "rnn"},
    "ntm": {"cell": "ntm", "ntm": {"memory_rows": 8, "memory_width": 4}},
}
LANES = {"truncated_bptt": 9, "global_batch": {"sequences": 4}}
VARYING = {"window_schedule": {"start": 5, "batches": 4, "spread": 1}}
TIMES = ("time", "seconds", "wait_seconds")


class Killed(BaseException):
    """Stands for SIGKILL: nothing of ours catches it."""


class KillAt(Callback):
    """Ends the process, so to say, right after an update and before anything else."""

    def __init__(self, step: int) -> None:
        self._step = step

    def stepped(self, trainer: Trainer, batch: Batch, result: StepResult) -> Due:
        if trainer.progress.step == self._step:
            raise Killed
        return Due()


class SeeRows(Callback):
    """Notes for each update its step, the number of ranks, and the sequences that this rank had; lists append at once."""

    def __init__(self, seen: list[tuple[int, int, list[int]]]) -> None:
        self._seen = seen

    def stepped(self, trainer: Trainer, batch: Batch, result: StepResult) -> Due:
        self._seen.append((trainer.progress.step, trainer.ranks.size, [row for row in batch.ids.tolist() if row >= 0]))
        return Due()


@pytest.mark.parametrize("mode", ["buckets", "lanes", "packed"])
@pytest.mark.parametrize("cell", MODELS)
def test_a_killed_run_ends_like_one_that_was_not(make_run, cell, mode):
    """Weights, optimizer, average, carried states and log, bit for bit, with dropout, schedule and parts of batches."""
    train: dict[str, Any] = {
        "steps": 9,
        "ema": 0.9,
        "schedule": {"kind": "cosine", "warmup": 3},
        "accumulate": 2,
        "checkpoint_every": {"steps": 3},
        "evaluate_every": 4,
        **({**LANES, **VARYING} if mode != "buckets" else {}),
    }
    model = {**MODELS[cell], "regularisation": {"dropout": 0.3, "variational": True, "l1": 1e-4, "l2": 1e-2}}
    whole = make_run("whole", train=train, model=model)
    killed = make_run("killed", train=train, model=model)
    if mode == "packed":
        whole, killed = (
            run.model_copy(update={"data": run.data.model_copy(update={"mode": mode})}) for run in (whole, killed)
        )

    train_until(whole, None)
    for step in (2, 5, 8):
        with pytest.raises(Killed):
            train_until(killed, step)
    train_until(killed, None)

    assert_same(final_checkpoint(whole), final_checkpoint(killed))
    assert steps_logged(whole) == steps_logged(killed)
    assert [record["step"] for record in steps_logged(killed)] == list(range(1, 10))


@pytest.mark.parametrize("mode", ["buckets", "lanes"])
def test_the_number_of_ranks_changes_nothing(make_run, on_ranks, mode):
    """Padding, divisor and gradient are those of the global batch, so that a run may be resized at any moment."""
    train = {"steps": 6, "learning_rate": 1e-3, "optimizer": "sgd", **(LANES if mode == "lanes" else {})}
    losses, weights = {}, {}
    for size in (1, 2, 3):
        run = make_run(f"ranks-{size}", train=train)
        if size == 1:
            train_until(run, None)
        else:
            on_ranks(size, lambda ranks, run=run: train_on(run, ranks))
        losses[size] = [record["loss"] for record in steps_logged(run)]
        weights[size] = final_checkpoint(run).tensors

    for size in (2, 3):
        assert losses[size] == pytest.approx(losses[1], rel=1e-6)
        for name, value in weights[1].items():
            torch.testing.assert_close(weights[size][name], value, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("mode", ["buckets", "lanes", "packed"])
def test_a_run_that_is_resized_goes_on_with_the_same_loss(make_run, on_ranks, mode):
    """Workers come and go: 4, then 2, then 3; carried states follow their lanes, and each update sees the same rows."""
    train = {
        "steps": 9,
        "checkpoint_every": {"steps": 3},
        "accumulate": 2,
        "ema": 0.9,
        "schedule": {"kind": "cosine", "warmup": 3},
        **(LANES if mode != "buckets" else {}),
    }
    steady, resized = (make_run(name, train=train) for name in ("steady", "resized"))
    if mode == "packed":
        steady, resized = (
            run.model_copy(update={"data": run.data.model_copy(update={"mode": mode})}) for run in (steady, resized)
        )
    seen: list[tuple[int, int, list[int]]] = []
    wanted: list[tuple[int, int, list[int]]] = []
    train_on(steady, SingleRank(), SeeRows(wanted))
    for size, stop in ((4, 4), (2, 7)):
        with pytest.raises(Killed):
            on_ranks(size, lambda ranks, stop=stop: train_on(resized, ranks, SeeRows(seen), KillAt(stop)))
    on_ranks(3, lambda ranks: train_on(resized, ranks, SeeRows(seen)))

    losses = [[record["loss"] for record in steps_logged(run)] for run in (steady, resized)]
    assert len(losses[0]) == 9 and losses[1] == pytest.approx(losses[0], abs=1e-6)
    ranks_of = {**dict.fromkeys((1, 2, 3), 4), **dict.fromkeys((4, 5, 6), 2), **dict.fromkeys((7, 8, 9), 3)}
    for step, size in ranks_of.items():
        rows = Counter(row for at, of, ids in seen if (at, of) == (step, size) for row in ids)
        assert rows == Counter(row for at, _, ids in wanted if at == step for row in ids), step


def test_a_run_that_is_finished_stays_as_it_is(make_run):
    """`recurra train` twice by mistake: the second time finds nothing to do and gives the same result."""
    run = make_run(train={"steps": 3})
    first = work(run, Surroundings(emit=lambda event: None))
    second = work(run, Surroundings(emit=lambda event: None))

    assert first is not None and second is not None
    assert (second.steps, second.metrics) == (first.steps, first.metrics)


def test_more_steps_may_be_asked_for_later(make_run):
    """A run that was too short is made longer by the same command with another `train.steps`."""
    train_until(make_run(train={"steps": 3}), None)
    train_until(make_run(train={"steps": 5}), None)

    assert [record["step"] for record in steps_logged(make_run())] == [1, 2, 3, 4, 5]


def train_until(run: TrainRun, step: int | None) -> None:
    train_on(run, SingleRank(), *([] if step is None else [KillAt(step)]))


def train_on(run: TrainRun, ranks: Ranks, *callbacks: Callback) -> None:
    work(run, Surroundings(emit=lambda event: None, callbacks=list(callbacks), ranks=ranks))


def final_checkpoint(run: TrainRun) -> Loaded:
    def fail(text: str) -> None:
        raise AssertionError(text)

    loaded = Checkpoints(run.open_store().child("checkpoints"), SingleRank(), attempt="reader", warn=fail).load_newest()
    assert loaded is not None
    return loaded


def assert_same(one: Loaded, other: Loaded) -> None:
    assert one.tensors.keys() == other.tensors.keys()
    for name, value in one.tensors.items():
        assert torch.equal(value, other.tensors[name]), name
    for mine, its in zip(one.own, other.own, strict=True):
        assert mine.keys() == its.keys()
        assert all(torch.equal(value, its[name]) for name, value in mine.items())
    without_time = [{k: v for k, v in loaded.progress.items() if k != "elapsed_s"} for loaded in (one, other)]
    assert without_time[0] == without_time[1]


def steps_logged(run: TrainRun) -> list[dict[str, Any]]:
    """The run's step records, without what depends on the clock."""
    store = run.open_store()
    lines = [line for info in store.list("metrics/") for line in store.read(info.key).splitlines()]
    return [{k: v for k, v in json.loads(line).items() if k not in TIMES} for line in lines]
