"""Compiles the kernels. Standard library alone, so that an image's build stage can run this file by itself:

python platform/recurra/models/native/compiling.py DIRECTORY    builds for every instruction set of this architecture
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

SOURCES = Path(__file__).parent
BUILT = SOURCES / "built"
"""Where libraries that were made ahead are looked for first."""
# No -ffast-math: it turned infinite exponentials into NaN. `omp simd` alone lets the compiler reorder sums.
FLAGS = ("-O3", "-std=c++17", "-fPIC", "-fopenmp-simd", "-fno-math-errno", "-fno-trapping-math")
LEVELS = ("x86-64-v4", "x86-64-v3", "") if platform.machine() == "x86_64" else ("",)
"""Instruction sets to build for: AVX-512, AVX2, and whatever the compiler takes for every CPU."""


def build(level: str, directory: Path) -> Path:
    """The library for an instruction set, compiled into `directory` unless it is there or among the built ones.

    Raises:
        OSError: There is no compiler, or the directory cannot be written.
        subprocess.SubprocessError: The compiler refused (its words are in `stderr`) or took too long.
    """
    name = f"recurra-{_digest(level)}-{platform.machine()}-{level or 'default'}.so"
    for file in (BUILT / name, directory / name):
        if file.is_file():
            return file
    compiler = shutil.which("g++") or shutil.which("c++") or shutil.which("clang++")
    if compiler is None:
        raise FileNotFoundError("no C++ compiler: neither g++, c++ nor clang++ is on the PATH")
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory) as scratch:
        made = Path(scratch, name)
        _compile(compiler, level, made)
        os.replace(made, file)  # two processes may build at once: both make the same, and the last one wins
    return file


def _compile(compiler: str, level: str, made: Path) -> None:
    """All sources at once: a fresh machine waits for the longest one, not for the sum."""
    sources = sorted(SOURCES.glob("*.cpp"))
    objects = [made.with_name(f"{source.stem}.o") for source in sources]
    with contextlib.ExitStack() as ending:
        running = []
        for source, target in zip(sources, objects, strict=True):
            command = [compiler, *_flags(level), "-c", "-o", str(target), str(source)]
            running.append(ending.enter_context(subprocess.Popen(command, stderr=subprocess.PIPE, text=True)))
            ending.callback(running[-1].kill)
        for process in running:
            _, said = process.communicate(timeout=300)
            if process.returncode:
                raise subprocess.CalledProcessError(process.returncode, process.args, stderr=said)
    command = [compiler, "-shared", "-o", str(made), *map(str, objects)]
    subprocess.run(command, check=True, capture_output=True, text=True, timeout=300)


def _flags(level: str) -> list[str]:
    return [*FLAGS, *([f"-march={level}"] if level else [])]


def _digest(level: str) -> str:
    parts = [file.read_bytes() for file in sorted(SOURCES.glob("*.h")) + sorted(SOURCES.glob("*.cpp"))]
    return hashlib.sha256(b"\0".join([*parts, " ".join(_flags(level)).encode()])).hexdigest()[:16]


if __name__ == "__main__":
    for level in LEVELS:
        build(level, Path(sys.argv[1]))
