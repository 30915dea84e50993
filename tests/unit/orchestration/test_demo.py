"""The demo's parts that need neither cluster nor network; tests/e2e walks the road itself."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import numpy as np
import pytest

from recurra.data.schema import Column, SequenceSchema
from recurra.data.vocabulary import ByteVocabulary
from recurra.data.write import DatasetWriter
from recurra.errors import ConfigError, DataError
from recurra.orchestration import demo as room
from recurra.orchestration.demo import JOB, DemoOptions, find_jobs, measure_baseline, run_demo
from recurra.orchestration.narrator import Narrator


def test_the_jobs_of_the_source_tree_are_found_from_anywhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """`recurra demo` is typed in some folder; `make demo` in the tree."""
    monkeypatch.chdir(tmp_path)
    assert (find_jobs(None) / JOB / "job.yaml").is_file()
    (tmp_path / "jobs" / JOB).mkdir(parents=True)
    (tmp_path / "jobs" / JOB / "job.yaml").touch()
    assert find_jobs(None) == Path("jobs")


def test_a_folder_without_the_job_is_refused_before_anything_starts(tmp_path: Path) -> None:
    """Starting Ray to find out takes ten seconds."""
    with pytest.raises(ConfigError, match="--jobs"):
        run_demo(DemoOptions(jobs=tmp_path), print)


def test_the_job_gets_data_runs_and_workers_of_its_own(tmp_path: Path) -> None:
    """A second demo must not go on with the run of the first."""
    job = room._load(find_jobs(None) / JOB / "job.yaml", "s3://bucket/demo/1", DemoOptions(steps=7, bucket="bucket"))
    run = job.train_run()
    assert (run.data.train, run.runs, run.train.workers, run.train.steps) == (
        "s3://bucket/demo/1/train",
        "s3://bucket/demo/1/runs",
        2,
        7,
    )
    assert run.publish and (run.publish.registry, run.publish.alias) == ("s3://bucket/registry", "production")
    assert job.serve_run().model == f"{run.publish.model}@production"


def test_the_baseline_is_measured_on_what_was_held_out(local_url: str) -> None:
    """Uniformly random bytes cost 8 bits each, whatever was learned; repeated ones next to none."""
    vocabulary = ByteVocabulary()
    schema = SequenceSchema((Column("tokens", "uint8"),))
    generator = np.random.default_rng(0)
    texts = {
        "random": generator.integers(0, 256, 20_000, dtype=np.uint8),
        "repeated": np.tile(vocabulary.encode("abcd"), 5000),
    }
    for name, tokens in texts.items():
        for split in ("train", "valid"):
            with DatasetWriter(f"{local_url}/{name}/{split}", schema, {"vocabulary": vocabulary.to_json()}) as writer:
                writer.write(
                    {
                        "tokens": tokens
                        if split == "train"
                        else generator.permutation(tokens)
                        if name == "random"
                        else tokens
                    }
                )
    assert measure_baseline(f"{local_url}/random", lambda text: None) > 7.5
    assert measure_baseline(f"{local_url}/repeated", lambda text: None) < 0.1


def test_a_failing_preparation_names_the_script(tmp_path: Path) -> None:
    """Its own lines are already on the screen."""
    script = tmp_path / "prepare.py"
    script.write_text("print('half way'); raise SystemExit(3)")
    said: list[str] = []
    with pytest.raises(DataError, match=r"prepare.py failed with exit code 3"):
        room._prepare(script, "s3://bucket/x", Narrator(said.append))
    assert "half way" in said[0]


def test_sigterm_ends_the_demo_as_an_interruption_does() -> None:
    """A supervisor's SIGTERM would otherwise leave a cluster behind."""
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), room._ending_on_sigterm():
        os.kill(os.getpid(), signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) == before
