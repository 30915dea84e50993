"""The training processes of a run as a group. The only import of torch.distributed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed
from torch import Tensor
from torch._C._distributed_c10d import TCPStore

from recurra.training.shared_memory import LEAST_ELEMENTS, SharedPair, share_memory

_TIMEOUT_S = 1800.0
"""Longest wait for another rank: a lost one is noticed at once, so this is for one that writes a large checkpoint."""


class Ranks(ABC):
    """What one training process knows of the others. Every rank calls every method equally often, in one order."""

    rank: int
    size: int

    def prepare_sums(self, values: Tensor) -> bool:
        """Make ready for sums of tensors like this one, and of none that are larger.

        Returns:
            Whether they will cost no more than copying them, so that nothing is gained by summing some while others are
            computed.
        """
        return False

    @abstractmethod
    def begin_sum(self, values: Tensor) -> Callable[[], None]:
        """Begin to replace `values` by its sum over all ranks, the same bits on every rank.

        Returns:
            What waits for that; until then nothing else may touch `values`.
        """

    def sum_in_place(self, values: Tensor) -> None:
        """Replace `values` by its sum over all ranks; the same bits on every rank."""
        self.begin_sum(values)()

    @abstractmethod
    def gather(self, value: Any) -> list[Any]:
        """One small picklable value of each rank, by rank, on every rank."""

    @abstractmethod
    def aside(self) -> Ranks:
        """The same ranks over a channel of its own, for one other thread: what it exchanges cannot meet what this one does."""

    def broadcast(self, value: Any) -> Any:
        """Rank 0's value, on every rank."""
        return self.gather(value if self.rank == 0 else None)[0]


class SingleRank(Ranks):
    """A run in one process."""

    rank = 0
    size = 1

    def begin_sum(self, values: Tensor) -> Callable[[], None]:
        """Nothing to add."""
        return _nothing_to_wait_for

    def gather(self, value: Any) -> list[Any]:
        return [value]

    def aside(self) -> Ranks:
        return self


class DistributedRanks(Ranks):
    """The process group that torch.distributed was initialised with (gloo on CPUs, NCCL on GPUs), or another one."""

    def __init__(self, group: torch.distributed.ProcessGroup | None = None) -> None:
        self.rank = torch.distributed.get_rank()
        self.size = torch.distributed.get_world_size()
        self._group = group
        self._pair: SharedPair | None = None

    def prepare_sums(self, values: Tensor) -> bool:
        if self.size != 2 or values.device.type != "cpu" or values.numel() < LEAST_ELEMENTS:
            return False
        self._pair = share_memory(self.rank, values.numel(), self.gather, timeout_s=_TIMEOUT_S)
        return self._pair is not None

    def begin_sum(self, values: Tensor) -> Callable[[], None]:
        if self._pair is not None and self._pair.takes(values):
            return self._pair.begin(values)
        work = torch.distributed.all_reduce(values, group=self._group, async_op=True)
        wait: Callable[[], None] = work.wait  # true, or an error
        return wait

    def gather(self, value: Any) -> list[Any]:
        values: list[Any] = [None] * self.size
        torch.distributed.all_gather_object(values, value, group=self._group)
        return values

    def aside(self) -> Ranks:
        # gloo also beside NCCL: what is exchanged there is never on a GPU, and must not wait for its stream.
        group = torch.distributed.new_group(backend="gloo", timeout=timedelta(seconds=_TIMEOUT_S))
        return DistributedRanks(group)


def join_group(
    rank: int, size: int, *, host: str, gpu: bool, agree: Callable[[tuple[str, int] | None], tuple[str, int]]
) -> None:
    """Form the process group of a run (NCCL on GPUs, gloo on CPUs); returns once all ranks are there.

    Args:
        rank: Of this process.
        size: Ranks of the run; nothing is formed for a single one.
        host: Name or address of this machine, as the other ranks reach it.
        gpu: Whether tensors are on GPUs.
        agree: Takes rank 0's address and port, None from the others; gives it on all ranks.
    """
    if size == 1:
        return
    timeout = timedelta(seconds=_TIMEOUT_S)
    if rank == 0:
        # Port 0: one that is chosen beforehand may be taken by the time it is opened.
        store = TCPStore(host, 0, size, True, timeout, wait_for_workers=False)
        agree((host, store.port))
    else:
        store = TCPStore(*agree(None), size, False, timeout)
    torch.distributed.init_process_group(
        "nccl" if gpu else "gloo", store=store, rank=rank, world_size=size, timeout=timeout
    )


def leave_group() -> None:
    """Take the process group apart, if there is one."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def current_ranks() -> Ranks:
    """The process group of this process, or the single rank when there is none (or it has one member)."""
    grouped = torch.distributed.is_available() and torch.distributed.is_initialized()
    return DistributedRanks() if grouped and torch.distributed.get_world_size() > 1 else SingleRank()


def _nothing_to_wait_for() -> None:
    """The sum of a single rank is there."""
