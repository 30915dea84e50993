import torch
from torch import nn

from recurra.training.average import WeightAverage


def test_the_average_follows_the_weights():
    """After n updates it is the geometric mean that its decay says."""
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, 1.0)
    average = WeightAverage(dict(model.named_parameters()), decay=0.5)
    for value in (2.0, 3.0):
        nn.init.constant_(model.weight, value)
        average.update()

    assert average.values["weight"].item() == 2.25  # 0.5 * (0.5 * 1 + 0.5 * 2) + 0.5 * 3


def test_the_weights_come_back_after_an_evaluation():
    """Training goes on with its own weights, also when the evaluation fails."""
    model = nn.Linear(2, 2)
    average = WeightAverage(dict(model.named_parameters()), decay=0.9)
    own = {name: value.detach().clone() for name, value in model.named_parameters()}
    nn.init.zeros_(average.values["weight"])
    try:
        with average.in_place():
            assert not model.weight.any()
            raise ValueError
    except ValueError:
        pass

    assert all(torch.equal(value, own[name]) for name, value in model.named_parameters())
    assert not average.values["weight"].any()
