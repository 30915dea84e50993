"""recurra train, plan, schema, render: what can be said of a job file without running it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from recurra.data.schema import Column, SequenceSchema
from recurra.data.vocabulary import ByteVocabulary
from recurra.data.write import DatasetWriter

from .conftest import Command


@pytest.fixture
def job(tmp_path: Path, local_url: str) -> Path:
    """A small job over a small dataset; runs and registry in a directory."""
    vocabulary = ByteVocabulary()
    schema = SequenceSchema((Column("tokens", vocabulary.dtype),))
    with DatasetWriter(f"{local_url}/text", schema, {"vocabulary": vocabulary.to_json()}) as writer:
        for number in range(20):
            writer.write({"tokens": vocabulary.encode(f"line number {number}")})
    values = {
        "name": "lines",
        "task": "language_model",
        "data": {"train": f"{local_url}/text"},
        "model": {"cell": "gru", "hidden_size": 8},
        "train": {"steps": 4, "global_batch": {"sequences": 4}},
        "publish": {"model": "lines", "alias": "production", "registry": f"{local_url}/registry"},
        "runs": f"{local_url}/runs",
    }
    file = tmp_path / "job.yaml"
    file.write_text(yaml.safe_dump(values))
    return file


def test_a_plan_without_problems_says_how_to_go_on(recurra: Command, job: Path) -> None:
    """The numbers are what a user checks before paying for a cluster."""
    shown = recurra("plan", job)
    assert shown.code == 0, shown.err
    assert f"Ready: recurra train {job}" in shown.out
    plan = recurra("plan", job, "--json").json
    assert plan["ready"] and plan["problems"] == []
    assert plan["data"]["train"]["sequences"] == 20
    assert plan["train"]["updates"] == 4 and plan["train"]["updates_per_epoch"] == 5
    assert plan["model"]["parameters"] > 0 and plan["model"]["session_bytes"] == 4 * 8


def test_a_plan_lists_every_problem_at_once(recurra: Command, job: Path, local_url: str) -> None:
    """Mending one fault a try costs a morning."""
    overrides = [f"data.eval={local_url}/nothing", "train.workers=8", "runs=file:///proc/no/such"]
    plan = recurra("plan", job, "--json", *(word for item in overrides for word in ("-o", item)))
    assert plan.code == 2
    problems = "\n".join(plan.json["problems"])
    assert "no committed dataset" in problems
    assert "gives 4 rows, fewer than train.workers = 8" in problems
    assert "runs = file:///proc/no/such cannot be written" in problems


@pytest.mark.parametrize("command", ["train", "plan", "submit", "deploy"])
def test_an_unknown_key_names_the_nearest_known_one(recurra: Command, job: Path, command: str) -> None:
    """A misspelt setting that is ignored costs a training run."""
    outcome = recurra(command, job, "-o", "train.stps=3", "--address", "127.0.0.1:1")
    assert outcome.code == 2
    assert "train.stps is not a setting. Did you mean 'steps'?" in outcome.err


def test_a_missing_job_file_is_named(recurra: Command) -> None:
    """The path is the fault, not its content."""
    outcome = recurra("train", "/no/job.yaml")
    assert outcome.code == 2 and "/no/job.yaml" in outcome.err


def test_an_address_where_nothing_listens_fails_at_once(recurra: Command, job: Path) -> None:
    """Ray itself would try for minutes, silently."""
    outcome = recurra("train", job, "--address", "127.0.0.1:1")
    assert outcome.code == 7 and "Nothing answers" in outcome.err
    assert recurra("train", job, "--address", "http://127.0.0.1:1").code == 7


def test_the_schema_describes_every_section(recurra: Command) -> None:
    """Editors complete and explain settings with it."""
    schema = json.loads(recurra("schema").out)
    assert set(schema["properties"]) >= {"name", "task", "data", "model", "train", "publish", "serve"}
    assert schema["$defs"]["TrainConfig"]["properties"]["learning_rate"]["description"]
    assert json.loads(recurra("schema", "model").out)["$defs"]
    wrong = recurra("schema", "modl")
    assert wrong.code == 2 and "Did you mean 'model'" in wrong.err


def test_render_writes_what_kubernetes_and_serve_take(recurra: Command, job: Path, tmp_path: Path) -> None:
    """stdout is for pipes, a file for repositories."""
    documents = list(yaml.safe_load_all(recurra("render", "k8s", job, "--image", "recurra:7").out))
    assert {document["kind"] for document in documents} >= {"RayJob", "RayService"}
    assert "recurra:7" in json.dumps(documents)
    target = tmp_path / "serve.yaml"
    assert recurra("render", "serve", job, "--output", target).out == ""
    (application,) = yaml.safe_load(target.read_text())["applications"]
    assert application["args"]["model"] == "lines@production"
    assert recurra("render", "serve", job, "--output", "/proc/no/serve.yaml").code == 2
