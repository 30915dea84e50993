"""Processes of ours: found by their token, and gone when they are told to go."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import uuid
from pathlib import Path

import pytest

from recurra.orchestration.processes import processes_with, stop_all, url_answers

pytestmark = pytest.mark.skipif(not Path("/proc").is_dir(), reason="reads /proc")
STUBBORN = (
    "import signal, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(60)"
)


def spawn(token: str, code: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "TOKEN_OF_A_TEST": token}
    process = subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True)
    assert process.stdout and process.stdout.readline() == "up\n"
    return process


def test_only_processes_with_the_whole_token_are_found() -> None:
    """A shorter token that another one starts with belongs to another cluster."""
    token = uuid.uuid4().hex
    process = spawn(token, "import time; print('up', flush=True); time.sleep(60)")
    try:
        assert processes_with("TOKEN_OF_A_TEST", token, group=0) == [process.pid]
        assert processes_with("TOKEN_OF_A_TEST", token[:-1], group=0) == []
    finally:
        process.kill()
        process.wait()
    assert processes_with("TOKEN_OF_A_TEST", token, group=0) == []


def test_whoever_ignores_sigterm_gets_sigkill() -> None:
    """A hung worker must not keep a demo from ending."""
    token = uuid.uuid4().hex
    leader, orphan = spawn(token, STUBBORN), spawn(token, STUBBORN)

    def alive() -> list[int]:
        return processes_with("TOKEN_OF_A_TEST", token, group=0)

    assert stop_all(alive, [leader.pid], polite_s=0.2) == []
    assert leader.wait(60) == orphan.wait(60) == -signal.SIGKILL


def test_a_closed_port_does_not_answer() -> None:
    """Readiness is asked for in a loop that must not raise."""
    assert not url_answers("http://127.0.0.1:1/")
