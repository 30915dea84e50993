import math

import pytest
import torch

from recurra.config.load import parse
from recurra.errors import ConfigError
from recurra.tasks.distributions import (
    KINDS,
    Gaussian,
    NegativeBinomial,
    Point,
    Quantiles,
    StudentT,
    Unit,
    build_distribution,
)
from recurra.tasks.forecast_config import ForecastingConfig
from recurra.tasks.inverses import negative_binomial_quantile, student_quantile

LEVELS = (0.05, 0.5, 0.9)
ONE = Unit(torch.tensor([10.0]), torch.tensor([2.0]))


def raw_spread(spread: float) -> float:
    """The output that stands for a spread: a floor of 0.001 and a start of 0.3 are in between."""
    return math.log(math.expm1(spread - 1e-3)) - math.log(math.expm1(0.3))


def test_a_gaussian_has_its_likelihood_and_its_quantiles():
    """By hand, of mean 1 and deviation 2: at 3 the density is that of one deviation; 5 and 90 % lie at -1.645 and 1.2816."""
    parameters = torch.tensor([[1.0, raw_spread(2.0)]])

    assert float(Gaussian().loss(parameters, torch.tensor([3.0]), ONE)) == pytest.approx(
        0.5 + math.log(2) + 0.5 * math.log(2 * math.pi), rel=1e-5
    )
    found = Gaussian().quantiles(parameters, LEVELS, ONE)[0].tolist()
    assert found == pytest.approx([1 - 2 * 1.644854, 1, 1 + 2 * 1.281552], rel=1e-5)


def test_students_t_has_the_likelihood_that_torch_gives():
    """An independent implementation, over a range of spreads and degrees of freedom."""
    torch.manual_seed(0)
    parameters, target = torch.randn(50, 3).double() * 2, torch.randn(50).double() * 3
    spread = torch.nn.functional.softplus(parameters[:, 1] + math.log(math.expm1(0.3))) + 1e-3
    freedom = 2.01 + torch.nn.functional.softplus(parameters[:, 2] + 4)
    expected = -torch.distributions.StudentT(freedom, parameters[:, 0], spread).log_prob(target)

    assert torch.allclose(StudentT().loss(parameters, target, ONE), expected, rtol=1e-9)


@pytest.mark.parametrize(
    ("freedom", "level", "value"),
    [(3.0, 0.95, 2.353363), (3.0, 0.05, -2.353363), (10.0, 0.975, 2.228139), (2.5, 0.5, 0.0), (1000.0, 0.9, 1.282399)],
)
def test_quantiles_of_students_t_are_those_of_the_tables(freedom, level, value):
    """Every book on statistics prints them."""
    found = student_quantile(torch.tensor([level]).double(), torch.tensor([freedom]).double())

    assert float(found) == pytest.approx(value, abs=2e-6)


def test_counts_have_the_likelihood_that_torch_gives():
    """Mean 10 e^0.5 and shape 2 about a base of 10, in units of 2; counts are whole, and far from the scaled targets."""
    parameters = torch.tensor([[0.5, raw_spread(2.0)]]).double()
    unit = Unit(torch.tensor([10.0]).double(), torch.tensor([2.0]).double())
    mean, rate = 10 * math.exp(0.5), 1 / 2.0
    known = torch.distributions.NegativeBinomial(
        torch.tensor(rate).double(), torch.tensor(mean / (mean + rate)).double()
    )
    for count in (0.0, 1.0, 13.0):
        found = NegativeBinomial().loss(parameters, torch.tensor([(count - 10) / 2]).double(), unit)
        assert float(found) == pytest.approx(-float(known.log_prob(torch.tensor(count).double())), rel=1e-5)


def test_quantiles_of_counts_are_the_smallest_that_suffice():
    """Against sums of torch's probabilities; a large mean is near the gamma distribution that it tends to."""
    levels = torch.tensor([0.05, 0.5, 0.9]).double()
    for mean, rate in ((0.3, 0.7), (12.0, 2.0), (90.0, 30.0)):
        known = torch.distributions.NegativeBinomial(
            torch.tensor(rate).double(), torch.tensor(mean / (mean + rate)).double()
        )
        below = known.log_prob(torch.arange(2000).double()).exp().cumsum(0)
        expected = [int((below < level).sum()) for level in levels]
        assert negative_binomial_quantile(levels, torch.tensor(mean), torch.tensor(rate)).tolist() == expected
    large = negative_binomial_quantile(levels, torch.tensor(1e5).double(), torch.tensor(4.0).double())
    assert large.tolist() == pytest.approx([1e5 / 4 * value for value in (1.366318, 3.672061, 6.680783)], rel=1e-4)


def test_no_series_makes_a_loss_that_is_not_finite():
    """All zero, a base below zero, an outlier of a million, outputs that have run away: gradients stay finite."""
    base, scale = torch.tensor([0.0, -5, 1e6, 3]), torch.tensor([1e-6, 1, 1e6, 1])
    for name in ("quantiles", *KINDS):
        distribution = build_distribution(name, LEVELS)
        for size in (0.0, 50.0, -50.0):
            parameters = torch.full((4, distribution.size), size, requires_grad=True)
            loss = distribution.loss(parameters, torch.tensor([0.0, 5, 1e6, -3]), Unit(base, scale))
            loss.sum().backward()
            assert loss.isfinite().all(), (name, size)
            assert parameters.grad.isfinite().all(), (name, size)
            quantiles = distribution.quantiles(parameters.detach(), LEVELS, Unit(base, scale))
            assert quantiles.isfinite().all() and (quantiles.diff(dim=-1) >= 0).all(), (name, size)


def test_a_point_has_one_value_for_all_quantiles():
    """Nothing is claimed of how sure it is."""
    assert Point().quantiles(torch.tensor([[4.0]]), LEVELS, ONE).tolist() == [[4, 4, 4]]
    assert float(Point().loss(torch.tensor([[4.0]]), torch.tensor([1.5]), ONE)) == 2.5


def test_quantiles_between_the_trained_ones_are_linear():
    """By hand: half way from 0.5 to 0.9 lies half way from 5 to 9, and beyond the outermost there is nothing to go by."""
    trained = Quantiles((0.1, 0.5, 0.9))
    found = trained.quantiles(torch.tensor([[5.0, 1.0, 9.0]]), (0.01, 0.1, 0.5, 0.7, 0.9, 0.99), ONE)

    assert found[0].tolist() == pytest.approx([1, 1, 5, 7, 9, 9])


@pytest.mark.parametrize("name", sorted(KINDS))
def test_each_kind_finds_the_distribution_that_made_the_data(name):
    """Counts of mean 20 with a base of 10: trained on draws, the median comes near, and nine in ten lie below 0.9."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    drawn = torch.distributions.NegativeBinomial(torch.tensor(4.0), torch.tensor(20 / 24)).sample((800,))
    unit = Unit(torch.full((800,), 10.0), torch.full((800,), 10.0))
    distribution = build_distribution(name, LEVELS)
    parameters = torch.zeros(distribution.size, requires_grad=True)
    optimizer = torch.optim.Adam([parameters], lr=0.05)
    for _ in range(150):
        optimizer.zero_grad()
        distribution.loss(parameters.expand(800, -1), (drawn - 10) / 10, unit).mean().backward()
        optimizer.step()

    quantiles = 10 + 10 * distribution.quantiles(parameters.detach().expand(800, -1), (0.5, 0.9), unit)
    assert float(quantiles[0, 0]) == pytest.approx(float(drawn.median()), abs=2.5)
    if name != "point":
        assert float((drawn <= quantiles[0, 1]).float().mean()) == pytest.approx(0.9, abs=0.04)


def test_counts_cannot_be_transformed():
    """A logarithm of a count is no count."""
    with pytest.raises(ConfigError, match="negative_binomial, of counts, with task.transform: log1p"):
        parse({"distribution": "negative_binomial", "transform": "log1p"}, ForecastingConfig)
