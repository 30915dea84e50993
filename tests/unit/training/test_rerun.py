"""A run made again from its prefix alone."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from recurra.data.schema import Column, SequenceSchema
from recurra.data.vocabulary import ByteVocabulary
from recurra.data.write import DatasetWriter
from recurra.errors import TrainingError
from recurra.training.rerun import prepare_rerun
from recurra.training.work import train_here

from .conftest import MakeRun

DROPOUT = {"regularisation": {"dropout": 0.3, "weight_drop": 0.2}}


def write(url: str, sequences: int) -> None:
    vocabulary = ByteVocabulary()
    schema = SequenceSchema((Column("tokens", vocabulary.dtype),))
    with DatasetWriter(url, schema, {"vocabulary": vocabulary.to_json()}) as writer:
        for number in range(sequences):
            writer.write({"tokens": vocabulary.encode(f"line {number} of a text").astype(np.uint16)})


def test_a_rerun_has_the_losses_of_the_run(make_run: MakeRun, tmp_path: Path) -> None:
    """Bit for bit, with dropout and shuffling, although the dataset has grown since."""
    data = f"file://{tmp_path}/growing"
    write(data, 20)
    run = make_run("first", data={"train": data}, model=DROPOUT, train={"steps": 12})
    result = train_here(run)
    write(data, 30)

    rerun = prepare_rerun(run.runs, "first")
    again = train_here(rerun.run)
    losses = rerun.outcome()

    assert rerun.run.name == "first-rerun" and again.steps == result.steps == 12
    assert losses.equal and losses.common == 12
    store = rerun.run.open_store()
    assert json.loads(store.read("data.json"))["train"]["version"] == 1
    assert json.loads(store.read("rerun_of.json")) == {"run": run.open_store().url}


def test_a_rerun_publishes_nothing_and_takes_a_free_name(make_run: MakeRun, tmp_path: Path) -> None:
    """Whoever checks a result must not change what is served, nor the run that is checked."""
    publish = {"model": "m", "alias": "production", "registry": f"file://{tmp_path}/registry"}
    run = make_run("first", train={"steps": 2}, publish=publish)
    train_here(run)
    names = []
    for _ in range(2):
        rerun = prepare_rerun(run.runs, "first")
        names.append(rerun.run.name)
        assert train_here(rerun.run).published is None

    assert names == ["first-rerun", "first-rerun2"]


def test_what_cannot_be_repeated_is_refused(make_run: MakeRun, tmp_path: Path) -> None:
    """Each with what to do instead."""
    run, other = make_run("first", train={"steps": 2}), make_run("other", train={"steps": 2})
    train_here(run)
    train_here(other)
    with pytest.raises(TrainingError, match=r"no run 'frist'.*Did you mean 'first'"):
        prepare_rerun(run.runs, "frist")
    with pytest.raises(TrainingError, match=r"a run 'other' already, and it repeats no other. Give --name"):
        prepare_rerun(run.runs, "first", "other")
    run.open_store().delete("data.json")
    with pytest.raises(TrainingError, match="nothing to repeat"):
        prepare_rerun(run.runs, "first")


def test_what_may_change_the_numbers_is_said(make_run: MakeRun) -> None:
    """Another torch may add in another order: then a difference is no mystery."""
    run = make_run("first", train={"steps": 2})
    train_here(run)
    store = run.open_store()
    kept = json.loads(store.read("environment.json"))
    kept["packages"]["torch"] = "1.0"
    kept["machine"] = "riscv64"
    store.write("environment.json", json.dumps(kept).encode())
    differences = prepare_rerun(run.runs, "first").differences

    assert any(line.startswith("torch: 1.0 then") for line in differences)
    assert any(line.startswith("machine: riscv64 then") for line in differences)
