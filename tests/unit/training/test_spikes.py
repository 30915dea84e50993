"""A loss that jumps: skipped, rewound or the end of the run, as the job file says."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from recurra.errors import DivergedError
from recurra.training.config import SpikeConfig
from recurra.training.progress import Progress
from recurra.training.ranks import SingleRank
from recurra.training.run import Origin
from recurra.training.step import Wishes
from recurra.training.trainer import Trainer

from .conftest import MakeRun

ORIGIN = Origin("a", "cpu", None, None, pytest.fail)


def trainer_of(make_run: MakeRun, **spike: object) -> Trainer:
    guard = {"spike": {"warmup": 3, "deviations": 8.0, **spike}}
    return make_run(train={"steps": 40, "guard": guard}).build(SingleRank(), ORIGIN)


def weights_of(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in trainer.update.model.named_parameters()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(value, other[name]) for name, value in one.items())


def poison(trainer: Trainer) -> None:
    """The model gives every target a vanishing probability."""
    with torch.no_grad():
        trainer.update.model.head.bias.zero_()
        trainer.update.model.head.bias[0] = 500.0


def test_the_limit_follows_mean_and_spread() -> None:
    """Mean and variance are the plain ones at first; nothing is judged before the warm-up has ended."""
    progress, spike = Progress(), SpikeConfig(warmup=4, deviations=2.0)
    for loss in (2.0, 4.0, 6.0):
        progress._follow(loss)
    assert progress.loss_limit(spike) is None and progress.loss_limit(None) is None
    progress._follow(8.0)
    assert progress.loss_mean == pytest.approx(5.0) and progress.loss_variance == pytest.approx(5.0)
    assert progress.loss_limit(spike) == pytest.approx(5 + 2 * math.sqrt(5))
    assert Progress.from_json(progress.to_json()) == progress


def test_a_spike_is_skipped_and_the_run_goes_on(make_run: MakeRun) -> None:
    """One bad batch: weights, optimizer and the averages are what they were; the next batch is learned from."""
    trainer = trainer_of(make_run)
    batches = trainer.batches()
    for _ in range(5):
        assert not trainer.step(next(batches), Wishes()).spike
    clean = weights_of(trainer)
    poison(trainer)
    poisoned, mean = weights_of(trainer), trainer.progress.loss_mean
    result = trainer.step(next(batches), Wishes())
    assert result.spike and result.skipped and math.isfinite(result.gradient_norm)
    assert same(weights_of(trainer), poisoned) and trainer.progress.loss_mean == mean
    assert (trainer.progress.step, trainer.progress.spikes) == (6, 1)
    with torch.no_grad():
        for name, value in trainer.update.model.named_parameters():
            value.copy_(clean[name])
    assert not trainer.step(next(batches), Wishes()).skipped and trainer.progress.spikes == 0
    trainer.close()


def test_rewinding_takes_the_last_checkpoint_and_goes_on_behind_the_data(make_run: MakeRun) -> None:
    """Weights and optimizer are those of the checkpoint; step and position are not, so the same data does not come again."""
    trainer = trainer_of(make_run, action="rewind")
    batches = trainer.batches()
    for _ in range(5):
        trainer.step(next(batches), Wishes())
    trainer.save()
    saved = weights_of(trainer)
    moments = {name: value.clone() for name, value in trainer.update.optimizer.tensors.items()}
    trainer.step(next(batches), Wishes())
    poison(trainer)
    batch = next(batches)
    assert trainer.step(batch, Wishes()).spike
    assert same(weights_of(trainer), saved) and same(moments, trainer.update.optimizer.tensors)
    assert trainer.progress.step == 7 and trainer.progress.position == batch.position
    assert not trainer.step(next(batches), Wishes()).skipped
    trainer.close()


@pytest.mark.parametrize(
    ("spike", "spikes"), [({"action": "stop"}, 1), ({"most": 2}, 3)], ids=["asked to stop", "too many in a row"]
)
def test_it_ends_with_the_reason(make_run: MakeRun, spike: dict[str, object], spikes: int) -> None:
    """What was seen, what counts as a spike, and what to change."""
    trainer = trainer_of(make_run, **spike)
    batches = trainer.batches()
    for _ in range(5):
        trainer.step(next(batches), Wishes())
    poison(trainer)
    expected = (
        rf"loss of step {5 + spikes} is .* lately it was .*is a spike .*{spikes}\. in a row. Lower train.learning_rate"
    )
    with pytest.raises(DivergedError, match=expected):
        for _ in range(spikes):
            trainer.step(next(batches), Wishes())
    trainer.close()


def test_a_spike_is_no_reason_to_doubt_the_gradient(make_run: MakeRun) -> None:
    """The two guards count for themselves."""
    trainer = trainer_of(make_run)
    batch = next(trainer.batches())
    result = trainer.step(batch, Wishes())
    progress = Progress(nonfinite=2)
    progress.advance(batch, replace(result, spike=True))
    assert (progress.nonfinite, progress.spikes, progress.judged) == (0, 1, 0)
    progress.advance(batch, replace(result, gradient_norm=float("nan")))
    assert (progress.nonfinite, progress.spikes) == (1, 0)
    trainer.close()
