"""Jobs on a real cluster: submitted, followed, listed, stopped, and what becomes of one that fails."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import yaml

from recurra.data.schema import Column, SequenceSchema
from recurra.data.vocabulary import ByteVocabulary
from recurra.data.write import DatasetWriter

from .conftest import Command

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def job(base_url: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    vocabulary = ByteVocabulary()
    schema = SequenceSchema((Column("tokens", vocabulary.dtype),))
    with DatasetWriter(f"{base_url}/text", schema, {"vocabulary": vocabulary.to_json()}) as writer:
        for number in range(40):
            writer.write({"tokens": vocabulary.encode(f"line number {number} of the text")})
    values = {
        "name": "jobs-test",
        "task": "language_model",
        "data": {"train": f"{base_url}/text"},
        "model": {"cell": "gru", "hidden_size": 8},
        "train": {"steps": 6, "global_batch": {"sequences": 8}},
        "runs": f"{base_url}/runs",
    }
    file = tmp_path_factory.mktemp("jobs") / "job.yaml"
    file.write_text(yaml.safe_dump(values))
    return file


def test_a_submitted_run_is_followed_to_its_end(recurra: Command, job: Path) -> None:
    """The log comes while the job runs, and its end becomes the exit code."""
    done = recurra("submit", job, "--id", "followed", "--follow")
    assert done.code == 0, done.err
    assert done.out.startswith("followed\n")
    assert "6/6" in done.out
    status = recurra("status", "followed", "--json")
    assert (status.code, status.json["status"], status.json["run"]) == (0, "SUCCEEDED", "jobs-test")
    assert "6/6" in recurra("logs", "followed").out
    again = recurra("submit", job, "--id", "followed")
    assert again.code == 7 and "exists already" in again.err
    assert "followed" in recurra("status").out


def test_a_failing_run_ends_with_its_own_message(recurra: Command, job: Path) -> None:
    """Whoever reads the log of a job sees the same one message as at a terminal."""
    missing = "data.train=s3://recurra/e2e-missing"
    failed = recurra("submit", job, "--follow", "-o", missing, "-o", "name=missing")
    assert failed.code == 6
    assert "no committed dataset" in failed.out and "Traceback" not in failed.out


def test_a_running_job_can_be_stopped(recurra: Command, job: Path) -> None:
    """Stopping twice is no error: the second one finds it stopped."""
    recurra("submit", job, "--id", "stopped", "-o", "train.steps=1000000", "-o", "name=long")
    deadline_s = time.monotonic() + 120
    while "train" not in recurra("logs", "stopped").out and time.monotonic() < deadline_s:
        time.sleep(0.5)
    for _ in range(2):
        stopped = recurra("stop", "stopped", "--json")
        assert (stopped.code, stopped.json["status"]) == (0, "STOPPED")
    assert recurra("status", "stopped").code == 6


def test_an_unknown_job_is_named(recurra: Command) -> None:
    """Ids are long and easily cut."""
    for command in ("status", "logs", "stop"):
        outcome = recurra(command, "no-such-job")
        assert outcome.code == 7 and "no-such-job" in outcome.err
