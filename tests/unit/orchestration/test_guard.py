"""The guard: whoever started something may be killed, and nothing of it stays."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest

from recurra.orchestration.processes import processes_with

pytestmark = pytest.mark.skipif(not Path("/proc").is_dir(), reason="reads /proc")
OWNER = """
import os, subprocess, sys, time
from recurra.orchestration.guard import Guard, Marked
token, folder = sys.argv[1:]
child = subprocess.Popen(["sleep", "60"], env={**os.environ, "GUARDED": token}, start_new_session=True)
guard = Guard([Marked("GUARDED", token, child.pid, folder)])
print("up", flush=True)
time.sleep(60)
"""


def test_a_killed_owner_takes_its_processes_and_their_folder_along(tmp_path: Path) -> None:
    """`timeout` and CI systems kill without asking; Ray would stay for days."""
    token, folder = uuid.uuid4().hex, tmp_path / "session"
    folder.mkdir()
    owner = subprocess.Popen([sys.executable, "-c", OWNER, token, str(folder)], stdout=subprocess.PIPE, text=True)
    assert owner.stdout and owner.stdout.readline() == "up\n"
    assert len(processes_with("GUARDED", token, group=0)) == 1
    os.kill(owner.pid, signal.SIGKILL)
    owner.wait()
    deadline_s = time.monotonic() + 50
    while (processes_with("GUARDED", token, group=0) or folder.exists()) and time.monotonic() < deadline_s:
        time.sleep(0.05)
    assert processes_with("GUARDED", token, group=0) == []
    assert not folder.exists()
