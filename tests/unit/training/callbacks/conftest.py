"""Callbacks are tried on a real trainer that stands still, with results made by hand and a clock wound by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from recurra.training.ranks import SingleRank
from recurra.training.run import Origin
from recurra.training.step import StepResult, Wishes

RESULT = StepResult(
    loss=2.0,
    count=90.0,
    gradient_norm=0.5,
    learning_rate=0.01,
    tokens=100,
    padded_tokens=125,
    wishes=Wishes(),
)


class Clock:
    """Seconds that pass when told to."""

    def __init__(self, now_s: float = 1000.0) -> None:
        self.now_s = now_s

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def make_trainer(make_run):
    made = []

    def make(**train):
        trainer = make_run(train=train).build(SingleRank(), Origin("a", "cpu", None, None, pytest.fail))
        made.append(trainer)
        return trainer

    yield make
    for trainer in made:
        trainer.close()


@pytest.fixture
def batch(make_trainer):
    """The first one of the small text."""
    trainer = make_trainer()
    return next(iter(trainer.train))


@pytest.fixture
def step(batch):
    """`step(callback, trainer)` is one update as the callback sees it; keywords change the result."""

    def make(callback, trainer, step_in_epoch=None, **changes):
        trainer.progress.step += 1
        seen = batch if step_in_epoch is None else replace(batch, step_in_epoch=step_in_epoch)
        return callback.stepped(trainer, seen, replace(RESULT, **changes))

    return make
