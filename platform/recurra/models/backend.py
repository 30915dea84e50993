"""Which implementation runs a core: the native kernels where they can, else torch's operations."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Literal

Backend = Literal["auto", "eager"]
"""`auto`: native kernels if they can be had for the device and dtype; `eager`: torch's operations one by one."""

_chosen: ContextVar[Backend] = ContextVar("backend", default="auto")


def backend() -> Backend:
    """What the current context asks for."""
    return _chosen.get()


@contextmanager
def use_backend(name: Backend) -> Iterator[None]:
    """Run what is inside on the named backend; for comparisons, in tests and benchmarks."""
    token = _chosen.set(name)
    try:
        yield
    finally:
        _chosen.reset(token)
