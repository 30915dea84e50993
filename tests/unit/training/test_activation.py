"""Activation regularisation: the penalty is the paper's, and the same however rows are spread over ranks."""

from __future__ import annotations

import pytest
import torch

from recurra.models.config import ModelConfig, RegularisationConfig
from recurra.models.sequence import ModelShape, SequenceModel
from recurra.training.activation import ActivationPenalty
from recurra.training.work import train_here

from .conftest import MakeRun

CONFIG = RegularisationConfig(activation=2.0, temporal_activation=3.0)


def model_of(*, per_step: bool) -> SequenceModel:
    torch.manual_seed(0)
    shape = ModelShape(input="features", input_size=2, output_size=3, per_step=per_step)
    return SequenceModel(ModelConfig(cell="gru", hidden_size=4), shape)


def test_it_is_the_mean_square_of_outputs_and_of_their_changes() -> None:
    """Worked out over the real steps alone; the step where a sequence starts is no change."""
    model = model_of(per_step=True)
    penalty = ActivationPenalty(model, CONFIG)
    x_BTD, lengths = torch.randn(2, 5, 2), torch.tensor([5, 3])
    reset_BT = torch.zeros(2, 5, dtype=torch.bool)
    reset_BT[0, 2] = True
    with penalty.watching():
        model(x_BTD, None, lengths, reset_BT)
    y_BTH, _ = model.core(x_BTD, None, lengths, reset_BT)
    squares = y_BTH.square().mean(2)
    changes = y_BTH.diff(dim=1).square().mean(2)
    expected = 2 * (squares[0].sum() + squares[1, :3].sum())
    expected += 3 * (changes[0, 0] + changes[0, 2] + changes[0, 3] + changes[1, 0] + changes[1, 1])

    cost = penalty.cost(lengths, reset_BT)
    assert cost is not None
    torch.testing.assert_close(cost, expected)
    assert penalty.cost(lengths, reset_BT) is None


@pytest.mark.parametrize("per_step", [True, False])
def test_rows_alone_cost_what_they_cost_together(per_step: bool) -> None:
    """So the gradient is the same at any number of workers, with accumulation, too."""
    model = model_of(per_step=per_step)
    penalty = ActivationPenalty(model, CONFIG)
    x_BTD, lengths = torch.randn(3, 6, 2), torch.tensor([6, 2, 4])

    def cost(rows: slice) -> torch.Tensor:
        with penalty.watching():
            model(x_BTD[rows], None, lengths[rows])
        found = penalty.cost(lengths[rows], None)
        assert found is not None
        return found

    torch.testing.assert_close(cost(slice(0, 3)), cost(slice(0, 1)) + cost(slice(1, 3)))


def test_without_factors_nothing_is_watched() -> None:
    """A run that asks for none pays for none."""
    model = model_of(per_step=True)
    penalty = ActivationPenalty(model, RegularisationConfig())
    with penalty.watching():
        model(torch.randn(1, 3, 2))
    assert penalty.cost(torch.tensor([3]), None) is None and not model.core._forward_hooks


@pytest.mark.parametrize("factor", ["activation", "temporal_activation"])
def test_a_run_with_it_keeps_its_outputs_small(make_run: MakeRun, factor: str) -> None:
    """A large factor drives what it penalises down; the loss that is shown is still the task's alone."""
    sizes = []
    for value in (0.0, 50.0):
        run = make_run(
            f"r{value:.0f}", model={"regularisation": {factor: value}}, train={"steps": 40, "learning_rate": 0.01}
        )
        result = train_here(run)
        sizes.append(result.metrics["loss"])
    assert sizes[0] < sizes[1] < 5.8
