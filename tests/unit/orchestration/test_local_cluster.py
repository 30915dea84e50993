"""Local clusters: what starts also ends, whoever ends it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from recurra.errors import ClusterError
from recurra.orchestration.local_cluster import ClusterOptions, LocalCluster

PING = """
import sys, ray
ray.init(address=sys.argv[1], log_to_driver=False, logging_level="ERROR")
environment = ray.remote(lambda: dict(__import__("os").environ))
print(ray.get(environment.remote())["PROOF"], int(ray.cluster_resources()["CPU"]))
"""


def ping(cluster: LocalCluster) -> str:
    command = [sys.executable, "-c", PING, cluster.address]
    done = subprocess.run(
        command, check=False, env={**os.environ, **cluster.environment()}, capture_output=True, text=True
    )
    return done.stdout.strip() or done.stderr


@pytest.mark.ray
def test_a_cluster_runs_tasks_is_found_again_and_leaves_no_process(tmp_path: Path) -> None:
    """The command that stops a cluster is another process than the one that started it."""
    options = ClusterOptions(num_cpus=3, environment={"PROOF": "here", "SECRET": "s3cr3t"})
    started = LocalCluster(tmp_path / "ray", options).start()
    record = tmp_path / "ray" / "cluster.json"
    try:
        assert ping(started) == "here 3"
        assert record.stat().st_mode & 0o777 == 0o600
        assert "s3cr3t" not in record.read_text()
        with pytest.raises(ClusterError, match="already runs"):
            LocalCluster(tmp_path / "ray").start()
        os.kill(started.add_node(2, {"spot": 1}), 0)
        assert ping(started) == "here 5"
    finally:
        pids = started.processes()
        temp_dir = Path(started.record.temp_dir)
        found = LocalCluster.find(tmp_path / "ray")
        assert found is not None
        found.stop()
    assert len(pids) > 5
    assert not [pid for pid in pids if Path(f"/proc/{pid}/cmdline").is_file() and b"ray" in _command(pid)]
    assert not temp_dir.exists() and not record.exists()
    assert LocalCluster.find(tmp_path / "ray") is None


@pytest.mark.ray
def test_a_killed_head_leaves_orphans_that_stop_still_finds(tmp_path: Path) -> None:
    """After a crash of the head its workers are nobody's children: only the token tells whose they are."""
    cluster = LocalCluster(tmp_path / "ray", ClusterOptions(num_cpus=1)).start()
    os.kill(cluster.record.pid, signal.SIGKILL)
    cluster.stop()
    with pytest.raises(ClusterError, match="recurra up"):
        cluster.processes()


def test_a_head_that_cannot_start_says_why_and_leaves_nothing(tmp_path: Path) -> None:
    """The end of Ray's log is the only place that names the cause."""
    cluster = LocalCluster(tmp_path / "ray", ClusterOptions(num_cpus=-1))
    with pytest.raises(ClusterError, match="ray-head.log"):
        cluster.start()
    assert LocalCluster.find(tmp_path / "ray") is None
    assert not (tmp_path / "ray" / "cluster.json").exists()


def test_a_torn_record_is_no_cluster(tmp_path: Path) -> None:
    """A power cut may tear the record; that must not keep the next start from working."""
    (tmp_path / "cluster.json").write_text(json.dumps({"token": "x"})[:5])
    assert LocalCluster.find(tmp_path) is None
    (tmp_path / "cluster.json").write_text(json.dumps({"token": "x"}))
    assert LocalCluster.find(tmp_path) is None


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""
