"""Loads the C++ kernels, compiling them at first use where nobody did so ahead.

Nothing here is needed for right results: without a compiler every core runs on torch's own operations.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import mmap
import subprocess
import sys
import warnings
from typing import Any

import torch
from torch import Tensor

from recurra.config.env import cache_dir, native_kernels_wanted
from recurra.models.native import compiling

SUFFIXES = {torch.float32: "f32", torch.float64: "f64"}
"""Types that the kernels compute in, and how the names of their functions end."""
LEVELS = {"AVX512": "x86-64-v4", "AVX2": "x86-64-v3"}
"""What torch finds the CPU to be -> the instruction set to build for; other CPUs get the compiler's default."""

HUGE_PAGE = 2 << 20
"""Bytes."""


@functools.cache
def kernels() -> ctypes.CDLL | None:
    """The loaded library; None, after one warning that says why, when there is none to load."""
    if not native_kernels_wanted():
        return None
    level = LEVELS.get(torch.backends.cpu.get_cpu_capability(), "")
    try:
        return ctypes.CDLL(str(compiling.build(level, cache_dir() / "native")))
    except (OSError, subprocess.SubprocessError) as exc:
        warnings.warn(
            f"The native kernels cannot be built or loaded ({_reason(exc)}); recurrent cores run on torch's operations, "
            "which give the same results more slowly. Install g++, or set RECURRA_NATIVE=0 to silence this.",
            RuntimeWarning,
            stacklevel=2,
        )
        return None


def available(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether kernels can be called for such tensors; builds them when it is asked first."""
    return device.type == "cpu" and dtype in SUFFIXES and kernels() is not None


@functools.cache
def function(name: str, *, returns_index: bool = False) -> Any:
    """A function of the library; it returns nothing, or an integer of 64 bits."""
    library = kernels()
    assert library is not None
    found = library[name]
    found.restype = ctypes.c_int64 if returns_index else None
    return found


def address(tensor: Tensor | None) -> int | None:
    """Where a tensor's numbers begin, for a pointer of a kernel's structure; None = a null pointer."""
    return None if tensor is None else tensor.data_ptr()


def packed(matrix: Tensor) -> Tensor:
    """A float32 matrix [n, depth] as products run through it; one number for each of [padded n, depth]."""
    n, depth = matrix.shape
    size = (ctypes.c_int64(n), ctypes.c_int64(depth))
    room = aligned(4 * function("recurra_packed_size", returns_index=True)(*size)).view(torch.float32)
    matrix = matrix.detach().float().contiguous()
    function("recurra_pack_f32")(*size, *map(ctypes.c_void_p, (matrix.data_ptr(), room.data_ptr())))
    return room


def aligned(size: int) -> Tensor:
    """Bytes that begin where a line of the cache begins: a load across two lines costs twice as much.

    Large ones lie in huge pages where the system has them: a step that runs through a matrix in pages of 4 KiB spends a
    seventh of its time looking up where these are.
    """
    if sys.platform == "linux" and size >= HUGE_PAGE // 2:
        memory, boundary = mmap.mmap(-1, size + HUGE_PAGE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS), HUGE_PAGE
        with contextlib.suppress(OSError):  # a kernel may be built without them
            memory.madvise(mmap.MADV_HUGEPAGE)
        room = torch.frombuffer(memory, dtype=torch.uint8)
    else:
        room, boundary = torch.empty(size + 64, dtype=torch.uint8), 64
    start = -room.data_ptr() % boundary
    return room[start : start + size]


def _reason(exc: OSError | subprocess.SubprocessError) -> str:
    if isinstance(exc, subprocess.CalledProcessError):
        return f"the compiler said: {str(exc.stderr).strip()[:300]}"
    return str(exc)
