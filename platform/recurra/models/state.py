"""Recurrent state as a value: a flat dict of named tensors whose batch axis is 0, and its description.

Engine, sessions, checkpoints and lanes are written against `StateSpec` alone, so a Neural Turing Machine's memory
needs no special case anywhere.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

State = dict[str, Tensor]
"""Name -> [B, ...]. Values are read, never written in place, by whoever did not create them."""


@dataclass(frozen=True)
class StateTensor:
    """One tensor of a state: its shape without the batch axis."""

    name: str
    shape: tuple[int, ...]
    dtype: str = "float32"

    @property
    def size_bytes(self) -> int:
        return math.prod(self.shape) * int(getattr(torch, self.dtype).itemsize)


@dataclass(frozen=True)
class StateSpec:
    """All tensors of a model's state, in a fixed order. Published in every bundle."""

    tensors: tuple[StateTensor, ...]

    @cached_property
    def digest(self) -> str:
        """SHA-256 over names, shapes and dtypes: two models with equal digests can exchange states."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()

    @property
    def size_bytes(self) -> int:
        """Bytes of the state of one session."""
        return sum(tensor.size_bytes for tensor in self.tensors)

    def to_json(self) -> list[dict[str, Any]]:
        return [{"name": t.name, "shape": list(t.shape), "dtype": t.dtype} for t in self.tensors]

    @classmethod
    def from_json(cls, value: list[dict[str, Any]]) -> StateSpec:
        return cls(tuple(StateTensor(v["name"], tuple(v["shape"]), v["dtype"]) for v in value))

    def prefixed(self, prefix: str) -> StateSpec:
        """The same tensors under `prefix.name`, for a stack of cores."""
        return StateSpec(tuple(StateTensor(f"{prefix}.{t.name}", t.shape, t.dtype) for t in self.tensors))


def select_rows(state: State, rows_B: Tensor) -> State:
    """The states of some rows, in the given order (a copy)."""
    return {name: value.index_select(0, rows_B) for name, value in state.items()}


def put_rows(state: State, rows_B: Tensor, values: State) -> None:
    """Write `values` into the given rows of `state`, in place; for the engine, which owns its slots."""
    for name, value in values.items():
        state[name].index_copy_(0, rows_B, value)


def where_rows(mask_B: Tensor, chosen: State, otherwise: State) -> State:
    """Row by row: `chosen` where the mask is True, else `otherwise`."""
    return {
        name: torch.where(mask_B.view(-1, *[1] * (value.dim() - 1)), value, otherwise[name])
        for name, value in chosen.items()
    }


def detach(state: State) -> State:
    """The same values without gradients: where truncated backpropagation is cut."""
    return {name: value.detach() for name, value in state.items()}
