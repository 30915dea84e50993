"""recurra runs: what has been trained, read from the store."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from recurra.data.schema import Column, SequenceSchema
from recurra.data.vocabulary import ByteVocabulary
from recurra.data.write import DatasetWriter
from recurra.training.run import TrainRun
from recurra.training.work import train_here

from .conftest import Command


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Two finished runs, `calm-lstm` and `calm-gru`, and one that its command left half done."""
    base = f"file://{tmp_path_factory.mktemp('runs')}"
    vocabulary = ByteVocabulary()
    schema = SequenceSchema((Column("tokens", vocabulary.dtype),))
    with DatasetWriter(f"{base}/text", schema, {"vocabulary": vocabulary.to_json()}) as writer:
        for number in range(20):
            writer.write({"tokens": vocabulary.encode(f"line number {number}")})
    for name, cell in (("calm-lstm", "lstm"), ("calm-gru", "gru")):
        train_here(small_run(base, name, cell=cell))
    store = small_run(base, "half", cell="lstm").open_store()
    store.write("job.json", json.dumps(small_run(base, "half", cell="lstm").model_dump(mode="json")).encode())
    return f"{base}/runs"


def small_run(base: str, name: str, **model: Any) -> TrainRun:
    return TrainRun.model_validate(
        {
            "name": name,
            "task": "language_model",
            "data": {"train": f"{base}/text", "eval": f"{base}/text"},
            "model": {"hidden_size": 8, **model},
            "train": {"steps": 4, "global_batch": {"sequences": 4}},
            "runs": f"{base}/runs",
        }
    )


def test_list_names_every_run_and_how_far_it_is(recurra: Command, runs: str) -> None:
    """Which of them is done, and which is it worth to look at?"""
    listed = recurra("runs", "list", "-R", runs, "--json").json
    assert {one["name"]: (one["state"], one["step"]) for one in listed} == {
        "calm-lstm": ("finished", 4),
        "calm-gru": ("finished", 4),
        "half": ("stopped", 0),
    }
    table = recurra("runs", "list", "-R", runs).out
    assert "calm-gru" in table and "4/4" in table and "bits_per" in table
    assert max(map(len, table.splitlines())) <= 80


def test_an_empty_prefix_says_how_a_run_comes_there(recurra: Command, local_url: str) -> None:
    """The first command of somebody new."""
    found = recurra("runs", "list", "--runs", local_url)
    assert found.code == 0 and "Start one: recurra train job.yaml" in found.err


def test_show_says_where_everything_is(recurra: Command, runs: str) -> None:
    """From a name to the report, the tables and the version of the data."""
    shown = recurra("runs", "show", "calm-lstm", "-R", runs)
    words = " ".join(shown.out.split())
    assert shown.code == 0 and "calm-lstm: finished" in words and "all 4 steps are done" in words
    assert "/calm-lstm/report.html" in "".join(shown.out.split()) and "text version 1" in words
    facts = recurra("runs", "show", "calm-lstm", "-R", runs, "--json").json
    assert facts["files"]["steps.parquet"].endswith("/calm-lstm/steps.parquet")
    assert facts["environment"]["packages"]["torch"] and len(facts["data"]["train"]["digest"]) == 64
    assert facts["events"][0]["event"] == "started"
    assert max(map(len, shown.out.splitlines())) <= 80


def test_compare_shows_the_setting_that_made_the_difference(recurra: Command, runs: str) -> None:
    """A table of fifty equal settings hides the one that is not."""
    compared = recurra("runs", "compare", "calm-lstm", "calm-gru", "-R", runs)
    assert compared.code == 0 and "model.cell" in compared.out and "hidden_size" not in compared.out
    assert "calm-gru differs from calm-lstm from update 1 of 4 on" in " ".join(compared.out.split())
    assert max(len(line) for line in compared.out.splitlines() if " differs from " not in line) <= 80
    found = recurra("runs", "compare", "calm-lstm", "calm-gru", "-R", runs, "--json").json
    assert found["settings"] == {"model.cell": ["lstm", "gru"]}
    same = recurra("runs", "compare", "calm-gru", "calm-gru", "-R", runs)
    assert "bit for bit, at all 4 updates" in " ".join(same.out.split())


def test_watch_ends_with_the_run_and_its_exit_code(recurra: Command, runs: str) -> None:
    """A script waits for a run that another machine trains."""
    done = recurra("runs", "watch", "calm-gru", "-R", runs)
    assert done.code == 0 and "finished 4/4" in done.err
    (line,) = recurra("runs", "watch", "calm-gru", "-R", runs, "--json").out.splitlines()
    assert json.loads(line)["state"] == "finished"
    half = recurra("runs", "watch", "half", "-R", runs)
    assert half.code == 6 and "Run 'half' is stopped" in half.err


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("runs", "show", "clam-gru"), 6, "Did you mean 'calm-gru'"),
        (("runs", "watch", "nothing-like-it"), 6, "Known here: calm-gru, calm-lstm, half"),
        (("runs", "compare", "calm-gru"), 2, "Name another run: runs compare calm-gru OTHER"),
        (("rerun", "clam-gru"), 6, "Did you mean 'calm-gru'"),
        (("rerun", "half"), 6, "nothing to repeat"),
    ],
)
def test_what_cannot_be_done_says_what_can(
    recurra: Command, runs: str, words: tuple[str, ...], code: int, said: str
) -> None:
    """One message, one exit code, no trace."""
    outcome = recurra(*words, "-R", runs)
    assert outcome.code == code and said in outcome.err and "Traceback" not in outcome.err


@pytest.mark.parametrize(
    "words", [("runs", "list"), ("runs", "show"), ("runs", "compare"), ("runs", "watch"), ("rerun",)]
)
def test_every_command_has_an_example(recurra: Command, words: tuple[str, ...]) -> None:
    """Help that only lists options is no help."""
    shown = recurra(*words, "--help")
    assert shown.code == 0 and f"Example: recurra {' '.join(words)}" in " ".join(shown.out.split())


def test_a_run_is_a_folder_that_can_be_copied(recurra: Command, runs: str, tmp_path: Path) -> None:
    """Nothing in it depends on where it lies."""
    shutil.copytree(runs.removeprefix("file://"), tmp_path / "elsewhere")
    listed = recurra("runs", "list", "-R", f"file://{tmp_path}/elsewhere", "--json").json
    assert len(listed) == 3
