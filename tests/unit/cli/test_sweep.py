"""recurra sweep: what can be said without a cluster, which a sweep whose trials are over does not need."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from recurra.data.schema import Column, SequenceSchema
from recurra.data.vocabulary import ByteVocabulary
from recurra.data.write import DatasetWriter
from recurra.orchestration.sweep_file import load_sweep
from recurra.orchestration.sweep_trials import make_trials
from recurra.storage.url import open_store
from recurra.training.callbacks.asking import ENDED_EARLY, AskAtEvaluations
from recurra.training.work import Surroundings, train_here, work

from .conftest import Command


@pytest.fixture
def sweep(tmp_path: Path, local_url: str) -> Path:
    """Two learning rates for a small job, in a directory."""
    vocabulary = ByteVocabulary()
    schema = SequenceSchema((Column("tokens", vocabulary.dtype),))
    with DatasetWriter(f"{local_url}/text", schema, {"vocabulary": vocabulary.to_json()}) as writer:
        for number in range(20):
            writer.write({"tokens": vocabulary.encode(f"line number {number}")})
    job = {
        "name": "lines",
        "task": "language_model",
        "data": {"train": f"{local_url}/text", "eval": f"{local_url}/text"},
        "model": {"cell": "gru", "hidden_size": 8},
        "train": {"steps": 6, "global_batch": {"sequences": 4}, "evaluate_every": 2},
        "runs": f"{local_url}/runs",
    }
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(job))
    file = tmp_path / "sweep.yaml"
    change(file, {"name": "rates", "job": "job.yaml", "space": {"train.learning_rate": {"grid": [0.02, 0.0001]}}})
    return file


def change(file: Path, settings: dict[str, object]) -> None:
    values = yaml.safe_load(file.read_text()) if file.exists() else {}
    file.write_text(yaml.safe_dump({**values, **settings}, sort_keys=False))


def test_a_plan_shows_every_trial_and_runs_none(recurra: Command, sweep: Path, local_url: str) -> None:
    """What a night of a cluster would be spent on."""
    shown = recurra("sweep", sweep, "--plan")
    assert shown.code == 0, shown.err
    assert "bits_per_token, min" in shown.out and "grace 2 updates, reduction 3" in shown.out
    assert f"Ready: recurra sweep {sweep}" in shown.out
    plan = recurra("sweep", sweep, "--plan", "--json").json
    assert [(trial["name"], trial["state"]) for trial in plan["trials"]] == [
        ("rates-001", "waiting"),
        ("rates-002", "waiting"),
    ]
    assert [info.key for info in open_store(f"{local_url}/runs").list()] == []


def test_a_plan_tells_what_would_stop_the_trials(recurra: Command, sweep: Path) -> None:
    """As for one run, before anything is paid for."""
    change(sweep.with_name("job.yaml"), {"runs": "file:///proc/no/such"})
    plan = recurra("sweep", sweep, "--plan")
    assert plan.code == 2 and "runs = file:///proc/no/such cannot be written" in plan.err


def test_a_metric_that_the_task_does_not_judge_by_needs_a_mode(recurra: Command, sweep: Path) -> None:
    """Nobody but the user knows whether much of it is good."""
    change(sweep, {"metric": "accuracy"})
    outcome = recurra("sweep", sweep, "--plan")
    assert outcome.code == 2 and "Add 'mode: min' or 'mode: max', or leave metric out" in outcome.err
    change(sweep, {"mode": "max"})
    assert recurra("sweep", sweep, "--plan").code == 0


def test_data_that_is_missing_is_named_before_a_cluster_is_looked_for(recurra: Command, sweep: Path) -> None:
    """Twenty trials would each fail of it."""
    change(sweep, {"space": {"data.train": {"grid": ["file:///no/data", "file:///no/other"]}}})
    outcome = recurra("sweep", sweep)
    assert outcome.code != 0 and "file:///no/data" in outcome.err


def test_a_dashboard_takes_a_sweep_as_a_job_alone(recurra: Command, sweep: Path) -> None:
    """A driver would have to run here."""
    outcome = recurra("sweep", sweep, "--address", "http://127.0.0.1:1")
    assert outcome.code == 7 and "Add --submit" in outcome.err
    assert recurra("sweep", sweep, "--submit", "--address", "http://127.0.0.1:1").code == 7


def test_a_sweep_whose_trials_are_over_shows_them_and_leaves_its_page(
    recurra: Command, sweep: Path, local_url: str
) -> None:
    """Trials are ordinary runs, so that ordinary runs of their names are its trials; no Ray is started for them."""
    best, early = make_trials(load_sweep(sweep))
    train_here(best.run)
    why = AskAtEvaluations(lambda step, steps, metrics: f"{ENDED_EARLY} at update {step}")
    work(early.run, Surroundings(emit=lambda event: None, callbacks=[why]))

    shown = recurra("sweep", sweep)

    assert shown.code == 0, shown.err
    assert "0 of 2 trials are to be made, 2 are over" in shown.err
    rows = [line.split() for line in shown.out.splitlines() if line.startswith("rates-")]
    assert [(row[0], row[1], row[2], row[-1]) for row in rows] == [
        ("rates-001", "0.02", "6", "finished"),
        ("rates-002", "0.0001", "2", "stopped"),
    ]
    assert "-o train.learning_rate=0.02" in shown.out
    assert max(map(len, shown.out.splitlines())) <= 80
    page = open_store(f"{local_url}/runs").read("rates/sweep.html").decode()
    assert "rates-001" in page and "ended early by the sweep at update 2" in page

    change(sweep, {"asha": {"reduction": 4}})
    other = recurra("sweep", sweep)
    assert other.code == 2 and "Sweep 'rates' was started with another 'asha'" in other.err
    change(sweep, {"name": "rates-001"})
    assert "rates-001 is a run. Give the sweep another name" in recurra("sweep", sweep).err
