"""Ranks that are processes of this machine and meet over a file, as the workers of a cluster meet over Ray.

Imported by the processes themselves, too: `start_ranks` puts this folder on their path.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

from recurra.training.ranks import Ranks, current_ranks, join_group

HERE = Path(__file__).parent


def start_ranks(size: int, code: list[str], place: Path, *arguments: str) -> list[subprocess.Popen[str]]:
    """One process a rank, each with one thread: `python CODE RANK SIZE PLACE ARGUMENTS`, its output in a pipe.

    Args:
        size: Number of ranks.
        code: A file, or `-c` and what it would hold; it calls `meet()` first.
        place: A file that is not there yet.
    """
    paths = [str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)}
    return [
        subprocess.Popen(
            [sys.executable, *code, str(rank), str(size), str(place), *arguments],
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for rank in range(size)
    ]


def meet() -> tuple[Ranks, list[str]]:
    """The ranks that `start_ranks` started, and what it was given besides."""
    rank, size, place = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])

    def agree(own: tuple[str, int] | None) -> tuple[str, int]:
        if own is not None:
            written = place.with_suffix(".new")
            written.write_text(json.dumps(own))
            written.replace(place)
            return own
        while not place.is_file():
            time.sleep(0.01)
        host, port = json.loads(place.read_text())
        return host, port

    join_group(rank, size, host="127.0.0.1", gpu=False, agree=agree)
    return current_ranks(), sys.argv[4:]
