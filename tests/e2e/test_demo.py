"""The demo as a user runs it, over data that is learned in seconds: text whose next letter needs a longer memory than
the baseline's three bytes."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
import yaml

from recurra.orchestration.demo import JOB
from recurra.orchestration.processes import processes_with

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]
DEMO = [sys.executable, "-m", "recurra.cli.main", "demo"]
PREPARE = """
import argparse
from recurra.data.schema import Column, SequenceSchema
from recurra.data.vocabulary import ByteVocabulary
from recurra.data.write import DatasetWriter

parser = argparse.ArgumentParser()
parser.add_argument("--out")
out = parser.parse_args().out
vocabulary = ByteVocabulary()
for split in ("train", "valid"):
    with DatasetWriter(f"{out}/{split}", SequenceSchema((Column("tokens", "uint8"),)), {"vocabulary": vocabulary.to_json()}) as w:
        for _ in range(16):
            w.write({"tokens": vocabulary.encode("aaaaab" * 20)})
print("written")
"""


@pytest.fixture
def jobs(tmp_path: Path) -> Path:
    folder = tmp_path / "jobs" / JOB
    folder.mkdir(parents=True)
    (folder / "prepare.py").write_text(PREPARE)
    values = {
        "name": JOB,
        "task": "language_model",
        "data": {"train": "s3://recurra/x", "eval": "s3://recurra/y"},
        "model": {"cell": "gru", "hidden_size": 24},
        "train": {"steps": 80, "learning_rate": 0.02, "global_batch": {"sequences": 8}, "evaluate_every": 80},
        "publish": {"model": JOB, "alias": "production"},
        "serve": {"slots": 8, "cpus_per_replica": 0.5},
    }
    (folder / "job.yaml").write_text(yaml.safe_dump(values))
    return tmp_path / "jobs"


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "RAY_", "RECURRA_"))}
    return {**kept, "RECURRA_HOME": str(tmp_path / "home")}


def left_over(environment: dict[str, str]) -> list[int]:
    """Whatever the demo started, by the two variables that all of it inherits."""
    home = environment["RECURRA_HOME"]
    return processes_with("RECURRA_HOME", home, group=0) + processes_with("HOME", f"{home}/local/s3", group=0)


def test_the_road_is_walked_to_its_end_and_keeps_serving_when_asked(jobs: Path, environment: dict[str, str]) -> None:
    """Every stage says what it did, the baseline is beaten, and `recurra down` ends what KEEP=1 left."""
    kept = {**environment, "KEEP": "1"}
    try:
        done = subprocess.run([*DEMO, "--jobs", jobs], env=kept, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{done.stdout[-3000:]}{done.stderr[-3000:]}"
        bits = re.search(
            r"(\d\.\d+) bits per byte on the files held out; the n-gram baseline has (\d\.\d+)", done.stdout
        )
        assert bits and float(bits[1]) < float(bits[2])
        assert "7 requests counted, 7 were sent" in done.stdout
        assert "Stop it: recurra down" in done.stdout
        url = re.search(r"answers at (http://\S+)", done.stdout)
        assert url and httpx.get(f"{url[1]}/health/ready", trust_env=False).json() == {"ready": True}
    finally:
        subprocess.run([sys.executable, "-m", "recurra.cli.main", "down"], env=environment, check=True)
    assert left_over(environment) == []


def test_a_demo_that_is_told_to_end_leaves_nothing(jobs: Path, environment: dict[str, str]) -> None:
    """SIGTERM in the middle of training: what CI does after its time limit."""
    demo = subprocess.Popen(
        [*DEMO, "--jobs", jobs, "--steps", "1000000"], env=environment, stdout=subprocess.PIPE, text=True
    )
    assert demo.stdout
    for line in demo.stdout:
        if "== training" in line:
            demo.send_signal(signal.SIGTERM)
            break
    rest = demo.stdout.read()
    assert demo.wait() == 130, rest
    assert "none is left" in rest
    assert left_over(environment) == []
