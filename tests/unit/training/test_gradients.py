import math

import pytest
import torch
from torch import nn

from recurra.training.config import GradientClipConfig
from recurra.training.gradients import FlatGradients
from recurra.training.ranks import SingleRank


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))


def test_backward_fills_the_flat_buffer(model):
    """One buffer means one collective call, one norm and one clip; torch must keep adding into our views."""
    gradients = FlatGradients(dict(model.named_parameters()), tail=2, ranks=SingleRank())
    x = torch.randn(5, 3)
    for _ in range(2):
        model(x).sum().backward()
    twice = gradients.flat.clone()
    gradients.clear()
    model(x).sum().backward()

    torch.testing.assert_close(2 * gradients.flat, twice)
    assert all(value.grad.data_ptr() == gradients.views[name].data_ptr() for name, value in model.named_parameters())


def test_norms_are_those_of_torch(model):
    """They are what clipping and the report go by."""
    gradients = FlatGradients(dict(model.named_parameters()), tail=0, ranks=SingleRank())
    model(torch.randn(5, 3)).square().sum().backward()
    expected = {name: value.grad.norm().item() for name, value in model.named_parameters()}

    assert gradients.norms() == pytest.approx(expected)
    assert gradients.norm().item() == pytest.approx(math.hypot(*expected.values()))


def test_clipping_by_norm_keeps_the_direction_and_by_value_does_not(model):
    """By norm is the default since it does not bend the update; by value bounds single numbers."""
    gradients = FlatGradients(dict(model.named_parameters()), tail=0, ranks=SingleRank())
    gradients.flat.copy_(torch.linspace(-3, 3, len(gradients.flat)))
    before = gradients.flat.clone()
    gradients.clip(GradientClipConfig(norm=1.0), gradients.norm().item())
    torch.testing.assert_close(gradients.flat, before / before.norm())

    gradients.flat.copy_(before)
    gradients.clip(GradientClipConfig(value=0.5), gradients.norm().item())
    torch.testing.assert_close(gradients.flat, before.clamp(-0.5, 0.5))

    gradients.flat.copy_(before)
    gradients.clip(GradientClipConfig(value=0.5, norm=0.1), gradients.norm().item())
    assert gradients.norm().item() == pytest.approx(0.1)


def test_a_small_gradient_is_left_alone(model):
    """Clipping is for the exception; scaling up would be another algorithm."""
    gradients = FlatGradients(dict(model.named_parameters()), tail=0, ranks=SingleRank())
    gradients.flat.fill_(1e-4)
    before = gradients.flat.clone()
    gradients.clip(GradientClipConfig(norm=1.0, value=1.0), gradients.norm().item())

    assert torch.equal(gradients.flat, before)


def test_the_tail_travels_with_the_gradients(model, on_ranks):
    """Loss, counts and wishes of all ranks come in the same message as the gradients."""

    def work(ranks):
        gradients = FlatGradients(dict(nn.Linear(2, 2).named_parameters()), tail=2, ranks=ranks)
        gradients.flat.fill_(ranks.rank + 1)
        gradients.tail[0] = 10 * (ranks.rank + 1)
        gradients.finish_sum()
        return gradients.flat.tolist(), gradients.tail.tolist()

    assert on_ranks(3, work) == [([6.0] * 6, [60.0, 0.0])] * 3


def test_a_single_rank_adds_nothing(model):
    """A run without Ray goes through the same code."""
    gradients = FlatGradients(dict(model.named_parameters()), tail=1, ranks=SingleRank())
    gradients.flat.fill_(2.0)
    gradients.finish_sum()

    assert set(gradients.flat.tolist()) == {2.0}


def test_adaptive_clipping_limits_each_unit_by_its_own_weights(model):
    """A row whose gradient is 100 times its weights is scaled down to the share; its neighbours are not touched."""
    gradients = FlatGradients(dict(model.named_parameters()), tail=0, ranks=SingleRank())
    weight, gradient = dict(model.named_parameters())["0.weight"], gradients.views["0.weight"]
    gradients.flat.fill_(1e-6)
    gradient[1] = 100 * weight.detach()[1]
    gradients.clip(GradientClipConfig(adaptive=0.01), gradients.norm().item())

    torch.testing.assert_close(gradient[1], 0.01 * weight.detach()[1])
    torch.testing.assert_close(gradient[0], torch.full((3,), 1e-6))
    assert gradients.norm().item() < 0.02


def test_weights_of_zero_can_still_move(model):
    """Biases start at zero: a share of nothing would keep them there for ever."""
    with torch.no_grad():
        model[0].bias.zero_()
    gradients = FlatGradients(dict(model.named_parameters()), tail=0, ranks=SingleRank())
    gradients.views["0.bias"].fill_(1.0)
    gradients.clip(GradientClipConfig(adaptive=0.1), gradients.norm().item())

    assert gradients.views["0.bias"].norm().item() == pytest.approx(1e-4)


def test_the_output_layer_is_not_clipped_adaptively_but_by_norm_it_is():
    """As in the paper; the other limits hold for all weights together, after it."""
    model = nn.ModuleDict({"core": nn.Linear(2, 2), "head": nn.Linear(2, 1)})
    gradients = FlatGradients(dict(model.named_parameters()), tail=0, ranks=SingleRank())
    gradients.flat.fill_(50.0)
    gradients.clip(GradientClipConfig(adaptive=0.01), gradients.norm().item())
    assert (gradients.views["head.weight"] == 50).all() and (gradients.views["core.weight"] < 1).all()
    gradients.clip(GradientClipConfig(adaptive=0.01, norm=1.0), 1e9)
    assert gradients.norm().item() == pytest.approx(1.0, rel=1e-4)
