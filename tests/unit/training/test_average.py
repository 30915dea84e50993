import torch
from torch import nn

from recurra.training.average import WeightAverage


def test_the_average_follows_the_weights():
    """After many updates it moves by what its decay says."""
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, 1.0)
    average = WeightAverage(dict(model.named_parameters()), decay=0.5)
    for step, value in enumerate((2.0, 3.0)):
        nn.init.constant_(model.weight, value)
        average.update(1000 + step)

    assert average.values["weight"].item() == 2.25  # 0.5 * (0.5 * 1 + 0.5 * 2) + 0.5 * 3


def test_what_the_weights_were_at_the_start_is_soon_forgotten():
    """Of a start at 1 and weights of 0 ever since, a thousandth is left after ten updates; the decay alone would leave 0.99."""
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, 1.0)
    average = WeightAverage(dict(model.named_parameters()), decay=0.999)
    nn.init.zeros_(model.weight)
    for step in range(1, 11):
        average.update(step)

    assert 0 < average.values["weight"].item() < 1e-3


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
