"""Loads the C++ kernels, compiling them at first use where nobody did so ahead.

Nothing here is needed for right results: without a compiler every core runs on torch's own operations.
"""

from __future__ import annotations

import ctypes
import functools
import subprocess
import warnings

import torch

from recurra.config.env import cache_dir, native_kernels_wanted
from recurra.models.native import compiling

LEVELS = {"AVX512": "x86-64-v4", "AVX2": "x86-64-v3"}
"""What torch finds the CPU to be -> the instruction set to build for; other CPUs get the compiler's default."""


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


def _reason(exc: OSError | subprocess.SubprocessError) -> str:
    if isinstance(exc, subprocess.CalledProcessError):
        return f"the compiler said: {str(exc.stderr).strip()[:300]}"
    return str(exc)
