"""Builds the C++ kernels with the machine's compiler at first use, keeps the result, and loads it.

Nothing here is needed for right results: without a compiler every core runs on torch's own operations.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
import warnings
from pathlib import Path

import torch

from recurra.config.env import cache_dir, native_kernels_wanted

SOURCES = Path(__file__).parent
# No -ffast-math: it turned infinite exponentials into NaN. `omp simd` alone lets the compiler reorder sums.
FLAGS = ("-O3", "-std=c++17", "-fPIC", "-shared", "-fopenmp-simd", "-fno-math-errno", "-fno-trapping-math")
LEVELS = {"AVX512": "x86-64-v4", "AVX2": "x86-64-v3"}
"""What torch finds the CPU to be -> the instruction set to build for; other CPUs get the compiler's default."""


@functools.cache
def kernels() -> ctypes.CDLL | None:
    """The loaded library; None, after one warning that says why, when there is none to load."""
    if not native_kernels_wanted():
        return None
    try:
        return ctypes.CDLL(str(build()))
    except (OSError, subprocess.SubprocessError) as exc:
        warnings.warn(
            f"The native kernels cannot be built or loaded ({_reason(exc)}); recurrent cores run on torch's operations, which "
            "give the same results more slowly. Install g++, or set RECURRA_NATIVE=0 to silence this.",
            RuntimeWarning,
            stacklevel=2,
        )
        return None


def build(level: str | None = None, directory: Path | None = None) -> Path:
    """The library for an instruction set (default: this CPU's), compiled unless it is there already.

    Raises:
        OSError: There is no compiler, or the directory cannot be written.
        subprocess.CalledProcessError: The compiler refused; its words are in `stderr`.
    """
    level = level if level is not None else LEVELS.get(torch.backends.cpu.get_cpu_capability(), "")
    directory = directory if directory is not None else cache_dir() / "native"
    file = directory / f"recurra-{_digest(level)}-{platform.machine()}-{level or 'default'}.so"
    if file.is_file():
        return file
    compiler = shutil.which("g++") or shutil.which("c++") or shutil.which("clang++")
    if compiler is None:
        raise FileNotFoundError("no C++ compiler: neither g++, c++ nor clang++ is on the PATH")
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory) as scratch:
        made = Path(scratch, file.name)
        command = [compiler, *_flags(level), "-o", str(made), *map(str, sorted(SOURCES.glob("*.cpp")))]
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=300)
        os.replace(made, file)  # two processes may build at once: both make the same bytes, and the last one wins
    return file


def _flags(level: str) -> list[str]:
    return [*FLAGS, *([f"-march={level}"] if level else [])]


def _digest(level: str) -> str:
    parts = [file.read_bytes() for file in sorted(SOURCES.glob("*.h")) + sorted(SOURCES.glob("*.cpp"))]
    return hashlib.sha256(b"\0".join([*parts, " ".join(_flags(level)).encode()])).hexdigest()[:16]


def _reason(exc: OSError | subprocess.SubprocessError) -> str:
    if isinstance(exc, subprocess.CalledProcessError):
        return f"the compiler said: {str(exc.stderr).strip()[:300]}"
    return str(exc)
