"""State of S sequences as tensors [S, ...], built from the StateSpec alone; and one state as a row of bytes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recurra.models.state import State, StateSpec

ALIGNMENT = 8
"""Every tensor starts at a multiple of it, so that a row of bytes can be seen as any dtype."""


class StateLayout:
    """Where each tensor of a state lies in a row of bytes: what sessions keep in memory and snapshots store."""

    def __init__(self, spec: StateSpec) -> None:
        self.spec = spec
        self._offsets: dict[str, int] = {}
        end = 0
        for tensor in spec.tensors:
            self._offsets[tensor.name] = end
            end += -(-tensor.size_bytes // ALIGNMENT) * ALIGNMENT
        self.row_bytes = max(end, ALIGNMENT)

    def views(self, matrix: Tensor) -> State:
        """The tensors of every row of a uint8 matrix [B, row_bytes], sharing its memory."""
        views = {}
        for tensor in self.spec.tensors:
            start = self._offsets[tensor.name]
            columns = matrix[:, start : start + tensor.size_bytes].view(getattr(torch, tensor.dtype))
            views[tensor.name] = columns.view(matrix.shape[0], *tensor.shape)
        return views

    def pack(self, state: State) -> list[bytes]:
        """Each row of a state as bytes."""
        batch = next(iter(state.values())).shape[0] if state else 0
        matrix = torch.zeros(batch, self.row_bytes, dtype=torch.uint8)
        for name, view in self.views(matrix).items():
            view.copy_(state[name])
        return split_rows(matrix)

    def unpack(self, rows: Sequence[bytes]) -> State:
        """The state of those rows, on the CPU (a copy)."""
        return self.views(self.matrix(rows))

    def arrays(self, row: bytes) -> dict[str, NDArray[Any]]:
        """The tensors of one row, sharing its memory. Of dtypes that numpy knows, as all states of served models are."""
        return {
            one.name: np.frombuffer(row, one.dtype, math.prod(one.shape), self._offsets[one.name]).reshape(one.shape)
            for one in self.spec.tensors
        }

    def matrix(self, rows: Sequence[bytes]) -> Tensor:
        """uint8 [len(rows), row_bytes]."""
        return torch.frombuffer(bytearray().join(rows), dtype=torch.uint8).view(len(rows), self.row_bytes)


class Slots:
    """S rows of state on the device, and one more that always holds the state at the start.

    Args:
        layout: Of the model's state.
        initial: State of batch 1 that every sequence starts from.
        count: Slots (S).
        device: Where the model computes.
    """

    def __init__(self, layout: StateLayout, initial: State, count: int, device: torch.device) -> None:
        self.layout = layout
        self.count = count
        self.blank = count
        """Index of the row at the start."""
        self.initial = layout.pack(initial)[0]
        self._matrix = layout.matrix([self.initial]).to(device).repeat(count + 1, 1)
        self._views = layout.views(self._matrix)
        self._free = list(range(count - 1, -1, -1))

    @property
    def state(self) -> State:
        """Every row's state [S + 1, ...], the very memory: whoever writes into it advances the slots."""
        return self._views

    @property
    def free(self) -> int:
        return len(self._free)

    @property
    def used(self) -> int:
        return self.count - len(self._free)

    def take(self) -> int:
        """A free slot, with whatever its last owner left in it."""
        return self._free.pop()

    def release(self, slots: Iterable[int]) -> None:
        self._free.extend(slots)

    def load(self, slots: Sequence[int], rows: Sequence[bytes]) -> None:
        """Write rows of bytes into slots."""
        index = torch.tensor(slots, device=self._matrix.device)
        self._matrix.index_copy_(0, index, self.layout.matrix(rows).to(self._matrix.device))

    def rows(self, slots: Sequence[int]) -> list[bytes]:
        """The states of some slots as bytes, to be kept elsewhere."""
        return split_rows(self._matrix.index_select(0, torch.tensor(slots, device=self._matrix.device)).cpu())


def split_rows(matrix: Tensor) -> list[bytes]:
    """Each row of a uint8 matrix on the CPU as bytes."""
    width = matrix.shape[1]
    data = matrix.numpy().tobytes()
    return [data[start : start + width] for start in range(0, len(data), width)]
