"""Memory that two ranks of one machine share: a sum of gradients is a copy and an addition, and the only message is a word."""

from __future__ import annotations

import contextlib
import mmap
import os
import secrets
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

_TOKEN_BYTES = 64
"""In front of the buffers: what shows that a file is the one that was meant."""
LEAST_ELEMENTS = 4096
"""Fewer go with a message as quickly."""


class SharedPair:
    """The buffers of two ranks, each of which writes its own and reads the other's.

    There are two of each, in turn, so that one word from the other rank is enough: who hears that the next sum is ready
    to be read knows that the other has read this one. The sum of two numbers has the same bits in either order, as it
    has by any other way, so a run may go on with its ranks on two machines. With three ranks that would not be so.

    Args:
        own, other: [2, N] float32.
    """

    def __init__(self, own: Tensor, other: Tensor) -> None:
        self._own = own
        self._other = other
        self._turn = 0
        self._open = False

    def takes(self, values: Tensor) -> bool:
        """Whether `values` can be summed here now; both ranks find the same."""
        fits = values.dtype == self._own.dtype and values.dim() == 1 and values.device.type == "cpu"
        return fits and LEAST_ELEMENTS <= len(values) <= self._own.shape[1] and not self._open

    def begin(self, values: Tensor, tell: Callable[[], Callable[[], None]]) -> Callable[[], None]:
        """Begin to replace `values` by its sum; gives what waits for it.

        Args:
            tell: Begins to tell the other rank that this one's are there; gives what waits for the same from it.
        """
        self._turn ^= 1
        self._open = True
        turn = self._turn
        self._own[turn, : len(values)].copy_(values)
        heard = tell()

        def wait() -> None:
            heard()
            values.add_(self._other[turn, : len(values)])
            self._open = False

        return wait


def share_memory(rank: int, elements: int, gather: Callable[[Any], list[Any]]) -> SharedPair | None:
    """Share buffers of so many float32 with the other of two ranks; None, on both, where they are on different machines.

    The memory has no name and lives in no folder: it is gone with the processes, however they end.

    Args:
        rank: Of this process, 0 or 1.
        elements: Of the largest tensor to be summed.
        gather: As `Ranks.gather`.
    """
    with contextlib.ExitStack() as opened:
        made = offer = found = None
        with contextlib.suppress(AttributeError, OSError):  # another system than Linux, or one that forbids it
            descriptor = os.memfd_create("recurra-gradients")
            opened.callback(os.close, descriptor)
            token = secrets.token_bytes(_TOKEN_BYTES)
            made, offer = _map(descriptor, token, elements), (f"/proc/{os.getpid()}/fd/{descriptor}", token)
        seen = gather(offer)[1 - rank]
        if seen is not None:
            path, written = seen
            with contextlib.suppress(OSError):  # on another machine there is no such file, or another one
                found = _open(path, written, elements)
        if not all(gather(made is not None and found is not None)):
            return None
    assert made is not None and found is not None
    return SharedPair(_buffers(made, elements), _buffers(found, elements))


def _map(descriptor: int, token: bytes, elements: int) -> mmap.mmap:
    os.ftruncate(descriptor, _size(elements))
    memory = mmap.mmap(descriptor, _size(elements))
    memory[:_TOKEN_BYTES] = token
    return memory


def _open(path: str, token: bytes, elements: int) -> mmap.mmap | None:
    descriptor = os.open(path, os.O_RDWR)
    try:
        if os.fstat(descriptor).st_size != _size(elements):
            return None
        memory = mmap.mmap(descriptor, _size(elements))
        return memory if memory[:_TOKEN_BYTES] == token else None
    finally:
        os.close(descriptor)


def _buffers(memory: mmap.mmap, elements: int) -> Tensor:
    return torch.frombuffer(memory, dtype=torch.float32, offset=_TOKEN_BYTES).view(2, elements)


def _size(elements: int) -> int:
    return _TOKEN_BYTES + 2 * elements * torch.float32.itemsize
