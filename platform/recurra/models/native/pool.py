"""Workspaces that are used again: paging in fresh memory at every call costs more than the arithmetic of small batches."""

from __future__ import annotations

import threading

import torch
from torch import Tensor

KEPT_BYTES = 256 << 20
"""Most memory that waits for its next use."""

_lock = threading.RLock()  # a lease may be let go of while one is lent: garbage collection runs anywhere
_waiting: list[Tensor] = []


class Lease:
    """A flat tensor of at least the size asked for; it goes back when the last user lets go of the lease."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor

    def __del__(self) -> None:
        with _lock:
            if sum(t.nbytes for t in _waiting) + self.tensor.nbytes <= KEPT_BYTES:
                _waiting.append(self.tensor)


def lend(numbers: int, dtype: torch.dtype) -> Lease:
    """A workspace of arbitrary content."""
    with _lock:
        fitting = [n for n, t in enumerate(_waiting) if t.dtype == dtype and numbers <= t.numel() <= 2 * numbers + 4096]
        if fitting:
            return Lease(_waiting.pop(min(fitting, key=lambda n: _waiting[n].numel())))
    return Lease(torch.empty(numbers, dtype=dtype))
