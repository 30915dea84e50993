import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from recurra.models.config import ModelConfig
from recurra.models.minimal import MinGruCell, MinLstmCell, scan


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 40), st.integers(0, 999))
def test_the_parallel_scan_is_the_recurrence(steps, seed):
    """Training runs in log2(T) passes, serving one step at a time."""
    torch.manual_seed(seed)
    a_BTH, b_BTH = torch.rand(2, steps, 3).double(), torch.randn(2, steps, 3).double()

    h_BTH = scan(a_BTH, b_BTH)

    h_BH = torch.zeros(2, 3).double()
    for t in range(steps):
        h_BH = a_BTH[:, t] * h_BH + b_BTH[:, t]
        assert_close(h_BTH[:, t], h_BH, atol=1e-12, rtol=1e-12)


def test_ten_thousand_steps_lose_no_digits():
    """A scan over logarithms would be off by 1e-3 here."""
    torch.manual_seed(0)
    a_BTH, b_BTH = torch.rand(1, 10_000, 2), torch.randn(1, 10_000, 2)

    assert_close(scan(a_BTH, b_BTH).double(), scan(a_BTH.double(), b_BTH.double()), atol=1e-5, rtol=1e-5)


def test_the_equations_are_the_papers():
    """Feng et al. 2024, sections 3.1 and 3.2, for one step."""
    torch.manual_seed(0)
    x, h = torch.randn(3), torch.randn(4)
    gru, lstm = (kind(3, ModelConfig(hidden_size=4)) for kind in (MinGruCell, MinLstmCell))

    z, proposed = (gru.weight @ x).view(2, 4)
    expected = (1 - z.sigmoid()) * h + z.sigmoid() * proposed
    assert_close(gru.step(x[None], {"h": h[None]})["h"][0], expected)
    f, i, proposed = (lstm.weight @ x).view(3, 4)
    expected = (f.sigmoid() * h + i.sigmoid() * proposed) / (f.sigmoid() + i.sigmoid())
    assert_close(lstm.step(x[None], {"h": h[None]})["h"][0], expected)


def test_closed_gates_keep_the_state():
    """f and i both underflow to 0 here, and 0 / 0 is no share."""
    cell = MinLstmCell(1, ModelConfig(hidden_size=1))
    with torch.no_grad():
        cell.weight.copy_(torch.tensor([[-2e3], [-3e3], [1.0]]))

    after = cell.step(torch.ones(1, 1), {"h": torch.full((1, 1), 7.0)})

    assert after["h"].item() == 7.0


@pytest.mark.parametrize("kind", [MinGruCell, MinLstmCell])
def test_chrono_starts_remember_for_as_long_as_asked(kind):
    """Tallec and Ollivier 2018: a unit with odds u of being kept forgets over 1 + u steps."""
    torch.manual_seed(0)
    cell = kind(1, ModelConfig(cell="mingru", hidden_size=500, chrono_steps=100))

    a_1H, _ = cell.factors(torch.zeros(1, 1))

    spans = 1 / (1 - a_1H)
    assert 2 <= spans.min() < 5 and 95 < spans.max() <= 100.1
