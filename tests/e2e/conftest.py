"""The command line against the session's Ray cluster and S3 server, in this process as the console script runs it."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from recurra.cli.main import run
from recurra.orchestration.local_cluster import LocalCluster


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Command = Callable[..., Outcome]


@pytest.fixture(scope="module")
def base_url(s3_server: object) -> str:
    """A prefix of the bucket for the tests of one file."""
    return f"s3://recurra/e2e-{uuid.uuid4().hex[:8]}"


@pytest.fixture
def recurra(
    ray_cluster: LocalCluster,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Command]:
    """`recurra("data", "inspect", url)` -> exit code, stdout, stderr; the cluster comes from the environment."""
    monkeypatch.setenv("RECURRA_HOME", str(tmp_path_factory.mktemp("home")))
    monkeypatch.setenv("COLUMNS", "80")
    for name, value in ray_cluster.environment().items():
        monkeypatch.setenv(name, value)

    def call(*arguments: object) -> Outcome:
        capsys.readouterr()
        code = run([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    yield call


def write_reviews(folder: Path, count: int = 120) -> Path:
    """A CSV that a small network learns in a few steps: which of two words is in the text?"""
    rows = [f"it was {'good' if n % 2 else 'bad'} on day {n % 7},{'yes' if n % 2 else 'no'}" for n in range(count)]
    file = folder / "reviews.csv"
    file.write_text("\n".join(["text,liked", *rows]) + "\n")
    return file
