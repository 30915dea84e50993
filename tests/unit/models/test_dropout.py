import torch
from torch.testing import assert_close

from recurra.models.dropout import TimeDropout


def test_a_variational_mask_is_the_same_at_every_step():
    """Gal and Ghahramani 2016: otherwise noise adds up along the sequence."""
    torch.manual_seed(0)
    dropped = TimeDropout(0.5, variational=True)(torch.ones(3, 6, 20))

    assert_close(dropped, dropped[:, :1].expand(-1, 6, -1))
    assert set(dropped.unique().tolist()) == {0.0, 2.0}
    assert not torch.equal(dropped[0], dropped[1])


def test_an_ordinary_mask_is_new_at_every_step():
    """The default of the job file."""
    torch.manual_seed(0)
    dropped = TimeDropout(0.5, variational=False)(torch.ones(1, 6, 20))

    assert not torch.equal(dropped[:, 0], dropped[:, 1])


def test_nothing_is_dropped_outside_training_and_an_empty_window_stays_empty():
    """Evaluation is exact, and the last window of an epoch may have no step."""
    x = torch.randn(2, 3, 4)

    assert TimeDropout(0.5, variational=True).eval()(x) is x
    assert TimeDropout(0.5, variational=True)(torch.zeros(2, 0, 4)).shape == (2, 0, 4)
