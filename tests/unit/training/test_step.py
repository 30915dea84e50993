import itertools

import numpy as np
import pytest
import torch

from recurra.training.ranks import SingleRank
from recurra.training.run import Origin
from recurra.training.step import Wishes, _mix, _parts

ORIGIN = Origin("a", "cpu", None, None, pytest.fail)


def trainer_of(run, ranks=None):
    return run.build(ranks or SingleRank(), ORIGIN)


def first_step(run):
    trainer = trainer_of(run)
    try:
        return trainer, trainer.step(next(iter(trainer.train)), Wishes())
    finally:
        trainer.close()


def test_the_gradient_is_that_of_the_mean_loss(make_run):
    """Sums are divided once, by the global count: checked against plain autograd on the same batch."""
    trainer = trainer_of(make_run(train={"gradient_clip": {"norm": None}, "optimizer": "sgd", "momentum": 0.0}))
    batch = next(iter(trainer.train))
    trainer.close()
    update = trainer.update
    tensors = update.task.tensors(batch)
    outputs, _ = update.model(tensors.inputs, None, tensors.lengths, tensors.reset)
    loss = update.task.loss(outputs, tensors)
    expected = torch.autograd.grad(loss.total / loss.count, list(update.gradients.parameters.values()))

    result = update(batch, 1, 10)

    assert result.loss == pytest.approx((loss.total / loss.count).item())
    for view, gradient in zip(update.gradients.views.values(), expected, strict=True):
        torch.testing.assert_close(view, gradient, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("parts", [2, 3, 50])
def test_parts_of_a_batch_add_up_to_it(make_run, parts):
    """Gradient accumulation saves memory and changes nothing else."""
    whole, in_parts = (first_step(make_run(train={"accumulate": count})) for count in (1, parts))

    assert in_parts[1].loss == pytest.approx(whole[1].loss, rel=1e-6)
    torch.testing.assert_close(in_parts[0].update.gradients.flat, whole[0].update.gradients.flat, atol=1e-6, rtol=1e-4)


def test_l1_pulls_matrices_towards_zero(make_run):
    """The factor of the job file times the sign of each weight, biases excepted."""
    plain, pulled = (
        first_step(make_run(train={"gradient_clip": {}}, model={"regularisation": {"l1": factor}}))[0].update.gradients
        for factor in (0.0, 0.25)
    )
    for name, view in pulled.views.items():
        difference = (view - plain.views[name]).abs()
        assert difference.allclose(torch.full_like(view, 0.25 if view.dim() > 1 else 0.0), atol=1e-5), name


def test_an_update_whose_gradient_is_not_finite_is_skipped(make_run):
    """One bad batch must not turn all weights into NaN, nor move moments or average."""
    trainer = trainer_of(make_run(train={"ema": 0.9}))
    update = trainer.update
    batch = next(iter(trainer.train))
    trainer.close()
    with torch.no_grad():
        update.model.head.bias[0] = float("nan")
    before = {name: value.clone() for name, value in update.gradients.parameters.items()}

    result = update(batch, 1, 10)

    assert result.skipped and not np.isfinite(result.gradient_norm)
    for name, value in update.gradients.parameters.items():
        torch.testing.assert_close(value, before[name], equal_nan=True)
    assert not update.optimizer.tensors["updates"].any()


def test_a_wish_of_one_rank_comes_true_on_all(make_run, on_ranks):
    """Clocks and signals differ between ranks; what they do must not."""

    def work(ranks):
        trainer = trainer_of(make_run(), ranks)
        result = trainer.step(next(iter(trainer.train)), Wishes(save=ranks.rank == 1, stop=False))
        trainer.close()
        return result.wishes

    assert on_ranks(3, work) == [Wishes(save=True, stop=False)] * 3


def test_more_ranks_than_rows_work(make_run, on_ranks):
    """A rank may have nothing but filler, and its neighbours must not wait for ever."""

    def work(ranks):
        trainer = trainer_of(make_run(train={"global_batch": {"sequences": 2}}), ranks)
        result = trainer.step(next(iter(trainer.train)), Wishes())
        trainer.close()
        return result.loss, result.count

    alone = first_step(make_run(train={"global_batch": {"sequences": 2}}))[1]
    assert all(result == pytest.approx((alone.loss, alone.count)) for result in on_ranks(3, work))


@pytest.mark.parametrize("precision", ["bf16-mixed", "fp16-mixed"])
def test_mixed_precision_changes_the_loss_a_little_and_keeps_the_weights_in_32_bits(make_run, precision):
    """It is for speed: the loss stays close, the gradient, too, and the master weights exact."""
    (_, exact), (mixed, rounded) = (first_step(make_run(train={"precision": kind})) for kind in ("fp32", precision))
    assert rounded.gradient_norm == pytest.approx(exact.gradient_norm, rel=0.05)

    assert rounded.loss == pytest.approx(exact.loss, rel=0.02)
    assert rounded.loss != exact.loss
    assert all(value.dtype == torch.float32 for value in mixed.update.model.parameters())


def test_a_scaled_loss_has_the_same_gradient(make_run):
    """Small gradients of half precision survive; a scale of two changes no bit of the rest."""
    trainer = trainer_of(make_run())
    batch = next(iter(trainer.train))
    trainer.close()
    update = trainer.update
    before = {name: value.detach().clone() for name, value in update.weights.items()}
    found = []
    for scale in (1.0, 2.0**16):
        for name, value in update.weights.items():
            value.data.copy_(before[name])
        result = update(batch, 1, 10, scale=scale)
        found.append((result.loss, result.gradient_norm, update.gradients.flat.clone()))

    assert found[0][:2] == found[1][:2] and torch.equal(found[0][2], found[1][2])


def test_a_scale_that_overflows_is_halved_and_the_update_left_out(make_run):
    """As often as it takes; from then on the run goes on."""
    trainer = trainer_of(make_run(train={"precision": "fp16-mixed", "steps": 12}))
    trainer.progress.loss_scale = 2.0**14
    results = [trainer.step(batch, Wishes()) for batch in itertools.islice(trainer.batches(), 11)]
    trainer.close()

    skipped = [result.skipped for result in results]
    assert skipped[0] and not all(skipped)
    assert trainer.progress.loss_scale == 2.0 ** (14 - sum(skipped))
    assert all(np.isfinite(result.loss) for result in results)


def test_layers_are_measured_now_and_then(make_run):
    """Every tenth update tells which layers' gradients vanish or explode."""
    trainer = trainer_of(make_run(train={"steps": 12}))
    results = [trainer.step(batch, Wishes()) for batch in itertools.islice(trainer.batches(), 12)]
    trainer.close()

    assert [bool(result.layer_norms) for result in results] == [step == 10 for step in range(1, 13)]
    squares = sum(norm**2 for norm in results[9].layer_norms.values())
    assert squares**0.5 == pytest.approx(results[9].gradient_norm, rel=1e-5)


def test_randomness_is_a_pinned_function_of_seed_step_and_rank():
    """Nothing of a generator is saved: a resume at any step draws what the run would have drawn."""
    assert _mix(0, 1, 0) == 4685109482889842056
    assert len({_mix(seed, step, rank) for seed in range(3) for step in range(200) for rank in range(8)}) == 4800


@pytest.mark.parametrize(("rows", "wanted"), [(10, 3), (2, 5), (7, 7), (1, 1)])
def test_parts_cover_all_rows_once(rows, wanted):
    """No row is dropped, none counted twice, no part empty."""
    parts = _parts(rows, wanted)

    assert [row for part in parts for row in range(rows)[part]] == list(range(rows))
    assert len(parts) == min(rows, wanted)
