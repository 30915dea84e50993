import torch

from recurra.models.native import pool


def test_a_returned_workspace_is_lent_again():
    """Fresh memory costs a page fault for every 4 KiB."""
    lease = pool.lend(12_345_678, torch.float32)
    address = lease.tensor.data_ptr()
    del lease

    assert pool.lend(12_345_000, torch.float32).tensor.data_ptr() == address


def test_a_workspace_in_use_is_not_lent_again():
    """Two graphs may be alive at once."""
    first, second = pool.lend(1_000_000, torch.float32), pool.lend(1_000_000, torch.float32)

    assert first.tensor.data_ptr() != second.tensor.data_ptr()


def test_types_and_sizes_must_fit():
    """A float64 workspace is no float32 one, and a huge one is not wasted on a step."""
    lease = pool.lend(1_000_000, torch.float64)
    address = lease.tensor.data_ptr()
    del lease

    assert pool.lend(1_000_000, torch.float32).tensor.data_ptr() != address
    assert pool.lend(1000, torch.float64).tensor.data_ptr() != address


def test_little_is_kept_waiting(monkeypatch):
    """Memory that nobody uses belongs to the machine."""
    monkeypatch.setattr(pool, "KEPT_BYTES", 1000)
    lease = pool.lend(5_000_000, torch.float16)
    del lease

    assert all(waiting.dtype != torch.float16 for waiting in pool._waiting)
