"""Whole sequences through a stack of layers in one native call, each as long as it is; the interpreter is free meanwhile."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recurra.models.native.library import function
from recurra.models.native.stepping import StackInPlace


class _Reading(ctypes.Structure):
    _fields_ = [
        ("batch", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("lengths", "from", "to", "inputs", "out")),
        ("every", ctypes.c_int64),
        ("workspace", ctypes.c_void_p),
    ]


class StackReading:
    """Reads sequences with the matrices of single steps, bit for bit as these would. Not for several threads at once.

    Args:
        stack: Whose matrices are of floats.
    """

    def __init__(self, stack: StackInPlace) -> None:
        self._stack = stack
        self._dtype = np.float32 if stack.dtype == torch.float32 else np.int64
        numbers = function("recurra_read_workspace_size", returns_index=True)(ctypes.c_void_p(stack.place))
        self._workspace = torch.empty(numbers)
        self._run = function("recurra_read", returns_index=True)
        self._run.argtypes = (ctypes.c_void_p, ctypes.c_void_p)

    def __call__(
        self, parts: Sequence[NDArray[np.generic]], starts: Sequence[int], ends: Sequence[int], *, every: bool
    ) -> Tensor:
        """Outputs [B, K] after the last step of each sequence, or with `every` [B, T, K], arbitrary in padding.

        Args:
            parts: Of each sequence token ids [T], or features [T, D]; at least one step.
            starts: Rows of the states that the sequences go on from; one row may stand there several times.
            ends: Rows that their states are written into, none of them twice; -1 = nowhere.

        Raises:
            IndexError: A row or a token does not exist, or the inputs have another shape; then nothing was done.
        """
        lengths = [len(part) for part in parts]
        inputs = np.concatenate(parts).astype(self._dtype, copy=False)
        shape = (len(parts), max(lengths)) if every else (len(parts),)
        out = torch.empty(*shape, self._stack.outputs)
        if min(lengths) > 0 and inputs.size == self._stack.width * sum(lengths):
            rows = np.array([lengths, starts, ends])
            first, stride = rows.ctypes.data, rows.strides[0]
            places = (first, first + stride, first + 2 * stride, inputs.ctypes.data, out.data_ptr())
            job = _Reading(len(parts), *places, every, self._workspace.data_ptr())
            if not self._run(self._stack.place, ctypes.addressof(job)):
                return out
        raise IndexError(
            f"{len(parts)} sequences with inputs of shape {list(inputs.shape)} in all cannot be read: a row or a token does "
            "not exist, a sequence is empty, or a step has another size."
        )
