import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from recurra.models.pooling import POOLINGS


@pytest.mark.parametrize("kind", ["mean", "max"])
@settings(max_examples=30, deadline=None)
@given(lengths=st.lists(st.integers(0, 5), min_size=1, max_size=4), cut=st.integers(0, 5), seed=st.integers(0, 999))
def test_pooling_in_two_parts_equals_pooling_at_once(kind, lengths, cut, seed):
    """Running values are exact: a classifier that steps answers as one that saw everything."""
    torch.manual_seed(seed)
    pooling = POOLINGS[kind](3)
    y_BTH = torch.randn(len(lengths), 5, 3).double()
    mask_BT = torch.arange(5) < torch.tensor(lengths)[:, None]
    state = pooling.zero_state(len(lengths), torch.float64, "cpu")

    _, between = pooling(y_BTH[:, :cut], y_BTH[:, 0], mask_BT[:, :cut], state)
    pooled_BH, _ = pooling(y_BTH[:, cut:], y_BTH[:, 0], mask_BT[:, cut:], between)

    for row, length in enumerate(lengths):
        real_TH = y_BTH[row, :length]
        expected = torch.zeros(3) if not length else real_TH.mean(0) if kind == "mean" else real_TH.amax(0)
        assert_close(pooled_BH[row], expected.double())


def test_last_pooling_keeps_nothing():
    """The core's own state is enough."""
    pooling = POOLINGS["last"](3)
    last_BH = torch.randn(2, 3)

    pooled_BH, state = pooling(torch.randn(2, 4, 3), last_BH, torch.ones(2, 4, dtype=torch.bool), {})

    assert pooled_BH is last_BH and state == {}
    assert pooling.spec(torch.float32).tensors == ()


def test_negative_maxima_are_kept():
    """A running value that starts at 0 must not count as an output."""
    pooling = POOLINGS["max"](1)
    state = pooling.zero_state(1, torch.float32, "cpu")

    pooled_BH, _ = pooling(torch.tensor([[[-3.0], [-2.0]]]), torch.zeros(1, 1), torch.tensor([[True, True]]), state)

    assert pooled_BH.item() == -2
