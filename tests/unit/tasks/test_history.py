import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recurra.tasks.history import look_back, steps_back, transform, undo

SERIES = np.array([10.0, 20.0, 12.0, 24.0, 11.0])


def test_a_step_is_seen_relative_to_its_last_season():
    """By hand, season 2: the last step has level (24 + 11) / 2, scale the same, and moved by 11 - 24 and 11 - 12."""
    past = look_back(SERIES, "none", 2, 1)

    assert past.scale_T[-1] == 17.5
    assert past.features_TD[-1] == pytest.approx(
        [(11 - 17.5) / 17.5, (11 - 24) / 17.5, (11 - 12) / 17.5, (17.5 - 16) / 17.5, 1]
    )
    assert past.features_TD[0].tolist() == [0, 0, 0, 0, 0]


def test_the_base_is_the_seasonal_naive_forecast():
    """Horizons beyond one season repeat the last season that has been seen."""
    past = look_back(SERIES, "none", 2, 5)

    assert past.base_TF[-1].tolist() == [24, 11, 24, 11, 24]


def test_size_does_not_matter():
    """One model serves series of any size: a thousand times the values is the same picture."""
    small, large = look_back(SERIES, "none", 2, 1), look_back(1000 * SERIES, "none", 2, 1)

    assert np.allclose(small.features_TD, large.features_TD)


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
    early = look_back(z[:cut], kind, season, horizon)
    tail = z[max(0, z.size - 1 - steps_back(season)) :]
    late = look_back(tail, kind, season, horizon)

    assert np.allclose(early.features_TD, whole.features_TD[:cut], atol=1e-6)
    assert np.allclose(early.base_TF, whole.base_TF[:cut])
    assert np.allclose(late.features_TD[-1], whole.features_TD[-1], atol=1e-6)
    assert np.allclose(late.scale_T[-1], whole.scale_T[-1])
    assert np.allclose(late.base_TF[-1], whole.base_TF[-1])


@pytest.mark.parametrize("kind", ["none", "log", "log1p"])
def test_undo_is_the_inverse_and_stays_finite(kind):
    """A wild output of an untrained model must still be JSON."""
    values = np.array([0.5, 1.0, 300.0])

    assert undo(transform(values, kind), kind) == pytest.approx(values)
    assert np.isfinite(undo(np.array([1e6]), kind)).all()


def test_a_constant_zero_series_has_no_infinite_feature():
    """Its scale is a floor, not zero."""
    past = look_back(np.zeros(6), "none", 2, 2)

    assert np.isfinite(past.features_TD).all()
    assert (past.scale_T > 0).all()
