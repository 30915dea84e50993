import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recurra.tasks.history import look_back, steps_back, transform, undo

SERIES = np.array([10.0, 20.0, 12.0, 24.0, 11.0])
"""Season 2: levels 15, 15, 16, 18, 17.5; swings -5, 5, -4, 6, -6.5."""


def test_a_step_is_seen_relative_to_its_last_season():
    """By hand: the last step has level and scale (24 + 11) / 2, and usually swings by (-4 - 5) / 2."""
    past = look_back(SERIES, "none", 2, 1)

    assert past.scale_T[-1] == 17.5
    assert past.features_TD[-1] * 17.5 == pytest.approx([-6.5, 11 - 24, 11 - 12, 17.5 - 16, -6.5 + 4.5, 17.5])


def test_the_base_is_the_level_and_the_mean_swing_of_the_last_seasons():
    """By hand: one step ahead swings 6 and 5 were seen, two steps ahead -6.5, -4 and -5; then the season repeats."""
    past = look_back(SERIES, "none", 2, 5)

    up, down = 17.5 + 11 / 2, 17.5 - 15.5 / 3
    assert past.base_TF[-1] == pytest.approx([up, down, up, down, up])


def test_a_series_that_repeats_is_its_own_base():
    """What never changes must cost nothing, after one season as after many."""
    past = look_back(np.tile([1.0, 5.0, 3.0], 6), "none", 3, 4)

    for origin in range(2, 18):
        assert past.base_TF[origin] == pytest.approx(
            [[1, 5, 3, 1, 5, 3][(origin + ahead) % 3] for ahead in range(1, 5)]
        )


def test_without_a_season_the_base_is_the_last_value():
    """The naive forecast of a random walk."""
    past = look_back(SERIES, "none", 1, 2)

    assert past.base_TF.tolist() == [[value, value] for value in SERIES]


def test_size_does_not_matter():
    """One model serves series of any size: a thousand times the values is the same picture."""
    small, large = look_back(SERIES, "none", 2, 1), look_back(1000 * SERIES, "none", 2, 1)

    assert np.allclose(small.features_TD, large.features_TD)


@settings(deadline=None)
@given(
    st.lists(st.floats(0.01, 1e4), min_size=1, max_size=40),
    st.integers(1, 6),
    st.integers(1, 8),
    st.sampled_from(["none", "log", "log1p"]),
)
def test_a_step_sees_no_future_and_no_more_past_than_it_says(values, season, horizon, kind):
    """Otherwise training sees what a forecast cannot, and a session cannot keep what its next step needs."""
    z = transform(np.array(values), kind)
    whole = look_back(z, kind, season, horizon)
    cut = len(values) - len(values) // 3
    if cut >= season:
        early = look_back(z[:cut], kind, season, horizon)
        assert np.allclose(early.features_TD, whole.features_TD[:cut], atol=1e-5)
        assert np.allclose(early.base_TF[season - 1 :], whole.base_TF[season - 1 : cut])
    if z.size >= season:
        late = look_back(z[max(0, z.size - 1 - steps_back(season)) :], kind, season, horizon)
        assert np.allclose(late.features_TD[-1], whole.features_TD[-1], atol=1e-5)
        assert np.allclose(late.scale_T[-1], whole.scale_T[-1])
        assert np.allclose(late.base_TF[-1], whole.base_TF[-1])


@pytest.mark.parametrize("kind", ["none", "log", "log1p"])
def test_undo_is_the_inverse_and_stays_finite(kind):
    """A wild output of an untrained model must still be JSON."""
    values = np.array([0.5, 1.0, 300.0])

    assert undo(transform(values, kind), kind) == pytest.approx(values)
    assert np.isfinite(undo(np.array([1e6]), kind)).all()


@pytest.mark.parametrize("steps", [0, 1, 6])
def test_nothing_and_zeros_have_no_infinite_feature(steps):
    """The scale of zeros is a floor, not zero."""
    past = look_back(np.zeros(steps), "none", 2, 2)

    assert past.features_TD.shape == (steps, 6)
    assert np.isfinite(past.features_TD).all()
    assert (past.scale_T > 0).all()
