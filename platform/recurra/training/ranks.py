"""The training processes of a run as a group. The only import of torch.distributed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
import torch.distributed
from torch import Tensor


class Ranks(ABC):
    """What one training process knows of the others. Every rank calls every method equally often, in one order."""

    rank: int
    size: int

    @abstractmethod
    def sum_in_place(self, values: Tensor) -> None:
        """Replace `values` by its sum over all ranks; the same bits on every rank."""

    @abstractmethod
    def gather(self, value: Any) -> list[Any]:
        """One small picklable value of each rank, by rank, on every rank."""

    def broadcast(self, value: Any) -> Any:
        """Rank 0's value, on every rank."""
        return self.gather(value if self.rank == 0 else None)[0]


class SingleRank(Ranks):
    """A run in one process."""

    rank = 0
    size = 1

    def sum_in_place(self, values: Tensor) -> None:
        """Nothing to add."""

    def gather(self, value: Any) -> list[Any]:
        return [value]


class DistributedRanks(Ranks):
    """The process group that torch.distributed was initialised with (gloo on CPUs, NCCL on GPUs)."""

    def __init__(self) -> None:
        self.rank = torch.distributed.get_rank()
        self.size = torch.distributed.get_world_size()

    def sum_in_place(self, values: Tensor) -> None:
        torch.distributed.all_reduce(values)

    def gather(self, value: Any) -> list[Any]:
        values: list[Any] = [None] * self.size
        torch.distributed.all_gather_object(values, value)
        return values


def current_ranks() -> Ranks:
    """The process group of this process, or the single rank when there is none (or it has one member)."""
    grouped = torch.distributed.is_available() and torch.distributed.is_initialized()
    return DistributedRanks() if grouped and torch.distributed.get_world_size() > 1 else SingleRank()
