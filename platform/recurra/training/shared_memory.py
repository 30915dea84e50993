"""Memory that two ranks of one machine share: a sum of gradients is a copy and an addition, and the only message is a word in a pipe."""

from __future__ import annotations

import contextlib
import mmap
import os
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any

import torch
from torch import Tensor

_TOKEN_BYTES = 64
"""In front of the buffers: what shows that a file is the one that was meant."""
LEAST_ELEMENTS = 4096
"""Fewer go with a message as quickly."""
_WORD = b"."


class SharedPair:
    """The buffers of two ranks, each of which writes its own and reads the other's.

    There are two of each, in turn, so that one word from the other rank is enough: who hears that the next sum is ready
    to be read knows that the other has read this one. The sum of two numbers has the same bits in either order, as it
    has by any other way, so a run may go on with its ranks on two machines. With three ranks that would not be so.

    Args:
        own, other: [2, N] float32.
        hears: The end of a pipe at which the other rank's words come in.
        tells: The end of the pipe into which this rank's go.
        timeout_s: Longest wait for a word.
    """

    def __init__(self, own: Tensor, other: Tensor, hears: Connection, tells: Connection, *, timeout_s: float) -> None:
        self._own = own
        self._other = other
        self._hears = hears
        self._tells = tells
        self._timeout_s = timeout_s
        self._turn = 0
        self._open = False

    def takes(self, values: Tensor) -> bool:
        """Whether `values` can be summed here now; both ranks find the same."""
        fits = values.dtype == self._own.dtype and values.dim() == 1 and values.device.type == "cpu"
        return fits and LEAST_ELEMENTS <= len(values) <= self._own.shape[1] and not self._open

    def begin(self, values: Tensor) -> Callable[[], None]:
        """Begin to replace `values` by its sum; gives what waits for it, and fails when the other rank is gone."""
        self._turn ^= 1
        self._open = True
        turn = self._turn
        self._own[turn, : len(values)].copy_(values)
        try:
            self._tells.send_bytes(_WORD)
        except OSError as exc:
            raise _gone() from exc

        def wait() -> None:
            self._hear()
            values.add_(self._other[turn, : len(values)])
            self._open = False

        return wait

    def _hear(self) -> None:
        if not self._hears.poll(self._timeout_s):
            raise RuntimeError(f"The other rank of this machine has said nothing for {self._timeout_s:.0f} s.")
        try:
            self._hears.recv_bytes()
        except EOFError as exc:
            raise _gone() from exc


@dataclass(frozen=True)
class _Offer:
    """What one rank tells the other of its memory and its pipe: files of its process, and what is written in the first."""

    memory: str
    pipe: str
    token: bytes


def share_memory(
    rank: int, elements: int, gather: Callable[[Any], list[Any]], *, timeout_s: float
) -> SharedPair | None:
    """Share buffers of so many float32 with the other of two ranks; None, on both, where they are on different machines.

    The memory has no name and lives in no folder: it is gone with the processes, however they end.

    Args:
        rank: Of this process, 0 or 1.
        elements: Of the largest tensor to be summed.
        gather: As `Ranks.gather`.
        timeout_s: Longest wait for the other rank in a sum.
    """
    with contextlib.ExitStack() as opened:
        made = offer = found = tells = None
        hears, told = Pipe(duplex=False)
        opened.callback(told.close)  # the other rank alone may hold that end, so that its death is heard
        with contextlib.suppress(AttributeError, OSError):  # another system than Linux, or one that forbids it
            descriptor = os.memfd_create("recurra-gradients")
            opened.callback(os.close, descriptor)
            files = f"/proc/{os.getpid()}/fd"
            token = secrets.token_bytes(_TOKEN_BYTES)
            made = _map(descriptor, token, elements)
            offer = _Offer(f"{files}/{descriptor}", f"{files}/{told.fileno()}", token)
        seen: _Offer | None = gather(offer)[1 - rank]
        if seen is not None:
            with contextlib.suppress(OSError):  # on another machine there is no such file, or another one
                found = _open(seen, elements)
                tells = Connection(os.open(seen.pipe, os.O_WRONLY), readable=False) if found is not None else None
        if not all(gather(made is not None and tells is not None)):
            return None
    assert made is not None and found is not None and tells is not None
    return SharedPair(_buffers(made, elements), _buffers(found, elements), hears, tells, timeout_s=timeout_s)


def _gone() -> RuntimeError:
    return RuntimeError("The other rank of this machine is gone: its end of the pipe was closed in a sum of gradients.")


def _map(descriptor: int, token: bytes, elements: int) -> mmap.mmap:
    os.ftruncate(descriptor, _size(elements))
    memory = mmap.mmap(descriptor, _size(elements))
    memory[:_TOKEN_BYTES] = token
    return memory


def _open(offer: _Offer, elements: int) -> mmap.mmap | None:
    descriptor = os.open(offer.memory, os.O_RDWR)
    try:
        if os.fstat(descriptor).st_size != _size(elements):
            return None
        memory = mmap.mmap(descriptor, _size(elements))
        return memory if memory[:_TOKEN_BYTES] == offer.token else None
    finally:
        os.close(descriptor)


def _buffers(memory: mmap.mmap, elements: int) -> Tensor:
    return torch.frombuffer(memory, dtype=torch.float32, offset=_TOKEN_BYTES).view(2, elements)


def _size(elements: int) -> int:
    return _TOKEN_BYTES + 2 * elements * torch.float32.itemsize
