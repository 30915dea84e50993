import math

import pytest
import torch

from recurra.tasks.detectors import EventDetector, ForecastDetector, ReconstructionDetector


def test_a_rank_counts_the_events_that_were_likelier():
    """By hand: of the probabilities 1/2, 1/4, 1/4 the second event has rank 2, as has the third; an unknown one 4."""
    outputs = torch.tensor([0.5, 0.25, 0.25]).log().expand(1, 4, 3)
    nats, rank = EventDetector(3, "rank").judge(outputs, torch.tensor([[0, 1, 2, 4]]))

    assert rank.tolist() == [[1, 2, 2, 4]]
    assert nats[0].tolist() == pytest.approx([math.log(2), math.log(4), math.log(4), math.log(4)])


def test_surprise_is_in_nats():
    """The loss of a step, so that it adds up."""
    outputs = torch.tensor([0.9, 0.1]).log()[None, None]
    _, score = EventDetector(2, "surprise").judge(outputs, torch.tensor([[1]]))

    assert float(score) == pytest.approx(math.log(10))


def test_a_forecast_is_judged_in_units_of_its_own_spread():
    """By hand: spreads 1 and 2 (softplus of log(e - 1) and of log(e^2 - 1), less the floor), errors 3 and 4."""
    spread = torch.tensor([1.0, 2.0])
    raw = (torch.exp(spread - 0.02) - 1).log()
    outputs = torch.cat([torch.tensor([0.0, 1.0]), raw])[None, None]
    nats, score = ForecastDetector(2).judge(outputs, torch.tensor([[[3.0, 5.0]]]))

    assert float(score) == pytest.approx((3 + 2) / 2, rel=1e-5)
    assert float(nats) == pytest.approx((3 + math.log(2) + 2 + math.log(4)) / 2, rel=1e-5)


def test_a_spread_cannot_shrink_to_nothing():
    """A constant sensor would make the likelihood infinite, and every rounding error an alarm."""
    nats, score = ForecastDetector(1).judge(torch.tensor([[[0.0, -200.0]]]), torch.tensor([[[0.001]]]))

    assert float(nats) > -4 and float(score) == pytest.approx(0.05, rel=1e-4)


def test_a_reconstruction_is_compared_where_there_were_steps():
    """NaN marks what lies before the sequence; it neither counts nor spoils the gradient."""
    outputs = torch.tensor([[[9.0, 2.0]]], requires_grad=True)
    target = torch.tensor([[[[math.nan], [5.0]]]])
    nats, score = ReconstructionDetector(1, 2).judge(outputs, target)
    nats.sum().backward()

    assert float(score) == 3 and not score.requires_grad
    assert outputs.grad.tolist() == [[[0, -1]]]
