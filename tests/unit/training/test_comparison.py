"""Where two runs differ."""

from __future__ import annotations

import math

from recurra.training.comparison import compare, compare_losses
from recurra.training.work import train_here

from .conftest import MakeRun


def records(losses):
    return [{"step": step, "loss": loss} for step, loss in enumerate(losses, 1)]


def test_only_what_differs_is_shown(make_run: MakeRun) -> None:
    """Fifty settings, of which two were changed: those are the answer."""
    one = make_run("one", train={"evaluate_every": 4})
    other = make_run("other", train={"evaluate_every": 4, "learning_rate": 0.01}, model={"cell": "gru"})
    for run in (one, other):
        train_here(run)
    found = compare([one.open_store(), other.open_store()])

    assert found.runs == ["one", "other"]
    assert found.settings == {"model.cell": ["lstm", "gru"], "train.learning_rate": [0.001, 0.01]}
    assert found.environment == {}
    assert found.results["updates"] == [8, 8] and found.results["bits_per_token"][0] is not None
    (losses,) = found.losses
    assert losses.common == 8 and losses.first_difference == 1 and not losses.equal
    assert found.to_json()["losses"][0]["equal"] is False


def test_the_same_run_twice_has_the_same_losses(make_run: MakeRun) -> None:
    """One seed, one order of data, one result."""
    stores = []
    for name in ("one", "two"):
        run = make_run(name, train={"steps": 4})
        train_here(run)
        stores.append(run.open_store())
    found = compare(stores)

    assert found.settings == {} and found.losses[0].equal and found.losses[0].common == 4


def test_losses_are_compared_where_both_have_them() -> None:
    """A run that went on for longer is not a different one for that."""
    same = compare_losses(records([3.0, 2.0, 1.0]), records([3.0, 2.0]))
    other = compare_losses(records([3.0, 2.0, 1.0]), records([3.0, 2.5, 1.25]))
    none = compare_losses(records([1.0]), [])
    lost = compare_losses(records([1.0, None]), records([1.0, 2.0]))

    assert same.equal and same.common == 2 and same.last == (2.0, 2.0)
    assert (other.first_difference, other.largest_difference, other.last) == (2, 0.5, (1.0, 1.25))
    assert not none.equal and none.last == (None, None)
    assert lost.first_difference == 2 and math.isinf(lost.largest_difference)
