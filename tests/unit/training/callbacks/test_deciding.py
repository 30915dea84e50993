"""The callbacks that decide what follows an update: evaluation, checkpoint, end."""

import pytest

from recurra.training.callbacks.checkpointing import SaveRegularly
from recurra.training.callbacks.evaluation import EvaluateRegularly
from recurra.training.callbacks.preemption import SaveBeforePreemption
from recurra.training.callbacks.stopping import StopWhenDone
from recurra.training.evaluation import Evaluation
from recurra.training.in_flight import Saved
from recurra.training.step import Wishes
from recurra.training.trainer import Due


def durable_after(seconds: float) -> Saved:
    return Saved(1, 1, blocked_s=0.0, durable_s=seconds, moment_s=0.0)


def test_evaluations_come_every_so_many_updates(make_trainer, step):
    """As the job file says."""
    trainer = make_trainer(evaluate_every=3)
    callback = EvaluateRegularly()

    assert [step(callback, trainer).evaluate for _ in range(6)] == [False, False, True] * 2


def test_evaluations_come_at_the_end_of_each_epoch_by_default(make_trainer, step):
    """90 sequences, 6 a batch: the batch with index 14 is the last of the epoch."""
    trainer = make_trainer(evaluate_every=None)
    callback = EvaluateRegularly()

    assert [step(callback, trainer, step_in_epoch=index).evaluate for index in (0, 13, 14)] == [False, False, True]


def test_without_evaluation_data_nothing_is_evaluated(make_trainer, step):
    """A run may be without."""
    trainer = make_trainer(evaluate_every=1)
    trainer.evaluation = None

    assert step(EvaluateRegularly(), trainer) == Due()


def test_checkpoints_come_every_so_many_updates_or_seconds(make_trainer, step, clock):
    """By steps all ranks decide for themselves; by time rank 0 makes a wish, which all then hear of."""
    trainer = make_trainer(checkpoint_every={"steps": 2, "seconds": 60})
    callback = SaveRegularly(clock)
    callback.started(trainer)

    assert [step(callback, trainer).save for _ in range(4)] == [False, True, False, True]
    assert callback.wishes() == Wishes()
    clock.now_s += 61
    assert callback.wishes() == Wishes(save=True)
    callback.copied(trainer, 0.1)
    assert callback.wishes() == Wishes()
    assert step(callback, trainer, wishes=Wishes(save=True)).save


def test_a_run_ends_with_its_last_step_evaluated_and_saved(make_trainer, step, clock):
    """What is published must have been looked at."""
    trainer = make_trainer(steps=2)
    callback = StopWhenDone(clock)
    callback.started(trainer)

    assert step(callback, trainer) == Due()
    assert step(callback, trainer) == Due(evaluate=True, save=True, end="all 2 steps are done")


def test_a_run_ends_when_its_time_is_used_up_over_all_attempts(make_trainer, step, clock):
    """Ten minutes are ten minutes, restarts included; only rank 0 looks at the clock."""
    trainer = make_trainer(steps=99, stop={"max_duration": "10m"})
    trainer.progress.elapsed_s = 500.0
    callback = StopWhenDone(clock)
    callback.started(trainer)
    clock.now_s += 99
    assert callback.wishes() == Wishes()
    clock.now_s += 2

    assert callback.wishes() == Wishes(stop=True)
    due = step(callback, trainer, wishes=Wishes(stop=True))
    assert due.end == "train.stop.max_duration is reached" and due.evaluate and due.save
    assert trainer.progress.elapsed_s == 601.0


def test_a_run_ends_when_nothing_improves(make_trainer, clock):
    """Patience counts evaluations since the best one."""
    trainer = make_trainer(stop={"patience": 2})
    callback = StopWhenDone(clock)
    outcomes = []
    for value in (3.0, 2.0, 2.5, 2.5):
        evaluation = Evaluation({"bits_per_token": value})
        improved = trainer.progress.judge(evaluation.metrics, ("bits_per_token", "min"))
        outcomes.append(callback.evaluated(trainer, evaluation, improved).end)

    assert outcomes == [None, None, None, "bits_per_token did not improve in 2 evaluations"]


@pytest.mark.parametrize(
    ("blocked_s", "durable_s", "expected"),
    [(0.01, 1, [0, 5, 10, 15, 20, 25]), (0.01, 7, [0, 8, 16]), (1.0, 1, [0, 10, 20])],
    ids=["cheap", "slow store", "slow copy"],
)
def test_a_node_that_is_taken_away_is_saved_before(make_trainer, clock, blocked_s, durable_s, expected):
    """At once when the notice comes, then one after the other, and never too late to become durable."""
    deadline = []
    callback = SaveBeforePreemption(lambda: deadline[0] if deadline else None, clock)
    trainer = make_trainer()
    assert not callback.wishes().save
    callback.copied(trainer, 99.0)  # one that has nothing to do with it
    callback.saved(trainer, durable_after(99.0))

    deadline.append(clock.now_s + 30)
    begun_at = []
    for _ in range(30):
        if callback.wishes().save:
            begun_at.append(30 - (deadline[0] - clock.now_s))
            callback.copied(trainer, blocked_s)
        if begun_at and clock.now_s == deadline[0] - 30 + begun_at[-1] + durable_s:
            callback.saved(trainer, durable_after(durable_s))
        clock.now_s += 1

    assert begun_at == expected


@pytest.mark.parametrize("seconds_left", [1.5, 0.0, -5.0])
def test_a_checkpoint_that_cannot_be_finished_is_not_begun(make_trainer, clock, seconds_left):
    """The first one is always tried: there is nothing to lose."""
    callback = SaveBeforePreemption(lambda: clock.now_s + seconds_left, clock)
    assert callback.wishes().save
    callback.copied(make_trainer(), 0.1)
    callback.saved(make_trainer(), durable_after(1.0))
    clock.now_s += 60

    assert not callback.wishes().save
