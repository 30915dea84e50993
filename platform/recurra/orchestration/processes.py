"""Processes that we started: found by a token in their environment, stopped by pid, never by name."""

from __future__ import annotations

import os
import signal
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

PROC = Path("/proc")
FORCED_S = 60.0
"""Longest wait for processes that got SIGKILL. They need some time on a core to go: on two cores at load 25, more than 10 s."""


def processes_with(variable: str, value: str, *, group: int) -> list[int]:
    """Pids alive that carry `variable=value` in their environment.

    Where there is no /proc (macOS), those of the process group `group`.
    """
    if not PROC.is_dir():
        return _process_group(group)
    wanted = f"{variable}={value}".encode()
    return [int(entry.name) for entry in PROC.iterdir() if entry.name.isdigit() and _carries(entry, wanted)]


def stop_all(
    processes: Callable[[], list[int]], leaders: Iterable[int], *, polite_s: float = 8.0, forced_s: float = FORCED_S
) -> list[int]:
    """SIGTERM to the leaders, then SIGKILL to whatever `processes` still finds; returns what is left after that.

    Args:
        processes: Pids that must be gone in the end; asked again and again, since dying parents leave new orphans.
        leaders: Pids that stop the others by themselves when they are asked to.
        polite_s: How long the leaders have for it.
        forced_s: How long after that SIGKILL is repeated.
    """
    alive = set(processes())
    asked = [pid for pid in leaders if pid in alive]
    for pid in asked:
        _signal(pid, signal.SIGTERM)
    deadline = time.monotonic() + (polite_s if asked else 0.0)
    while processes() and time.monotonic() < deadline:
        time.sleep(0.1)
    return kill_all(processes, forced_s)


def kill_all(processes: Callable[[], list[int]], timeout_s: float = FORCED_S) -> list[int]:
    """SIGKILL to whatever `processes` finds, until there is nothing; returns what is left after that time."""
    deadline = time.monotonic() + timeout_s
    while (left := processes()) and time.monotonic() < deadline:
        for pid in left:
            _signal(pid, signal.SIGKILL)
        time.sleep(0.1)
    return left


def url_answers(url: str, timeout_s: float = 2.0) -> bool:
    """Whether a GET answers with a success status; proxies of the environment are not asked."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=timeout_s) as response:
            return 200 <= int(response.status) < 300
    except OSError:
        return False


def _carries(entry: Path, wanted: bytes) -> bool:
    try:
        # Empty for a zombie, unreadable for another user's process: neither is ours to stop.
        return wanted in (entry / "environ").read_bytes().split(b"\0")
    except OSError:
        return False


def _process_group(group: int) -> list[int]:
    listing = subprocess.run(["ps", "-axo", "pid=,pgid=,stat="], capture_output=True, text=True, check=True).stdout
    rows = (line.split() for line in listing.splitlines())
    return [int(pid) for pid, pgid, stat in rows if int(pgid) == group and not stat.startswith("Z")]


def _signal(pid: int, number: int) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)
