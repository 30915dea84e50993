"""Ends processes when the one that started them is gone, even if it was killed: a demo or a test leaves nothing behind.

The guard is a process that waits for the end of its standard input, which its owner holds open.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from recurra.orchestration.processes import processes_with, stop_all


@dataclass(frozen=True)
class Marked:
    """Processes that carry a variable in their environment."""

    variable: str
    value: str
    leader: int
    """Pid of the one that ends the others when it is asked to; also their process group."""
    folder: str | None = None
    """Removed afterwards."""

    def processes(self) -> list[int]:
        """Pids that are alive."""
        return processes_with(self.variable, self.value, group=self.leader)


class Guard:
    """Watches over marked processes from now until it is closed; they should be gone by then."""

    def __init__(self, marked: Sequence[Marked]) -> None:
        argument = json.dumps([asdict(item) for item in marked])
        self._process = subprocess.Popen(
            [sys.executable, "-m", "recurra.orchestration.guard", argument],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def close(self) -> None:
        """Let the guard go; what it finds still running it ends."""
        self._process.communicate()


def main() -> None:
    """What the guard's process runs."""
    marked = [Marked(**item) for item in json.loads(sys.argv[1])]
    sys.stdin.buffer.read()
    for item in marked:
        stop_all(item.processes, leaders=[item.leader])
        if item.folder is not None:
            shutil.rmtree(item.folder, ignore_errors=True)


if __name__ == "__main__":
    main()
