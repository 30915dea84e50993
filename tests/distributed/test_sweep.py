"""A sweep on a real Ray cluster, with its runs in a real S3 server; its command is killed for real."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from recurra.cli.main import run as command_line
from recurra.data.schema import Column, SequenceSchema
from recurra.data.vocabulary import ByteVocabulary
from recurra.data.write import DatasetWriter
from recurra.orchestration.sweep_file import load_sweep
from recurra.orchestration.sweep_trials import make_trials
from recurra.storage.store import Store
from recurra.storage.url import open_store
from recurra.training.runs import all_records, read_events
from recurra.training.work import train_here

pytestmark = pytest.mark.ray
STEPS = 120
HELD = """
import time
from pathlib import Path
from recurra.training.callbacks.base import Callback
from recurra.training.trainer import Due

class Held(Callback):
    def stepped(self, trainer, batch, result):
        file = Path("{folder}/hold")
        if trainer.name == "rates-003" and trainer.progress.step == 30 and file.exists():
            file.unlink()
            time.sleep(300)
            raise TimeoutError("nobody came to kill the sweep")
        return Due()
"""
"""The third trial waits to be killed with a checkpoint behind it, once."""


@pytest.fixture
def sweep_file(tmp_path: Path, s3_url: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three learning rates: slow, hopeless, good."""
    (tmp_path / "held_trial.py").write_text(HELD.format(folder=tmp_path))
    (tmp_path / "hold").touch()
    monkeypatch.chdir(tmp_path)  # Ray's workers import from where their driver is
    monkeypatch.syspath_prepend(tmp_path)
    vocabulary = ByteVocabulary()
    schema = SequenceSchema((Column("tokens", vocabulary.dtype),))
    generator = np.random.default_rng(3)
    for name, sequences in (("text", 96), ("eval", 16)):
        with DatasetWriter(f"{s3_url}/{name}", schema, {"vocabulary": vocabulary.to_json()}) as writer:
            for _ in range(sequences):
                writer.write({"tokens": 97 + np.cumsum(generator.integers(1, 4, generator.integers(8, 30))) % 20})
    job = {
        "name": "letters",
        "task": "language_model",
        "data": {"train": f"{s3_url}/text", "eval": f"{s3_url}/eval"},
        "model": {"cell": "gru", "hidden_size": 16, "embedding_size": 8, "regularisation": {"dropout": 0.1}},
        "train": {
            "steps": STEPS,
            "global_batch": {"sequences": 8},
            "evaluate_every": 20,
            "checkpoint_every": {"steps": 20},
            "callbacks": ["held_trial:Held"],
        },
        "runs": f"{s3_url}/runs",
    }
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(job))
    sweep = {
        "name": "rates",
        "job": "job.yaml",
        "space": {"train.learning_rate": {"grid": [1e-3, 1e-7, 4e-2]}},
        "concurrent": 1,
    }
    file = tmp_path / "sweep.yaml"
    file.write_text(yaml.safe_dump(sweep))
    return file


@pytest.mark.timeout(900)
def test_a_killed_sweep_goes_on_where_it_was(ray_cluster, sweep_file: Path, s3_url: str, capsys, monkeypatch) -> None:
    """Typed again, it makes no finished trial again, and the interrupted one has the losses that it would have had."""
    runs = open_store(f"{s3_url}/runs")
    hold = sweep_file.parent / "hold"
    kill_when(sweep_file, ray_cluster.address, lambda: has_checkpoint(runs, "rates-003") and not hold.exists())
    capsys.readouterr()
    (left,) = sweep_file.parent.glob("recurra-tune-*")

    monkeypatch.setattr(tempfile, "tempdir", str(sweep_file.parent))
    assert command_line(["sweep", str(sweep_file), "--address", ray_cluster.address, "--json"]) == 0
    assert not left.exists() and not list(sweep_file.parent.glob("recurra-tune-*"))
    outcome = json.loads(capsys.readouterr().out)

    rows = {row["name"]: row for row in outcome["trials"]}
    assert {name: row["state"] for name, row in rows.items()} == {
        "rates-001": "finished",
        "rates-002": "stopped early",
        "rates-003": "finished",
    }
    assert (rows["rates-002"]["step"], rows["rates-003"]["step"]) == (20, STEPS)
    assert outcome["best"] == outcome["trials"][0]["name"] == "rates-003"
    attempts = {name: [e["resumed_from"] for e in events_of(runs, name, "started")] for name in rows}
    assert attempts["rates-001"] == attempts["rates-002"] == [None]
    assert attempts["rates-003"][-1] is not None  # a checkpoint; the first attempt was killed before it wrote its log
    assert all(runs.exists(f"{name}/report.html") for name in rows)
    assert "rates-003" in runs.read("rates/sweep.html").decode()

    undisturbed = make_trials(load_sweep(sweep_file))[2].run.model_copy(update={"name": "undisturbed"})
    train_here(undisturbed)
    losses = [record["loss"] for record in all_records(runs.child("rates-003"))]
    assert losses == [record["loss"] for record in all_records(undisturbed.open_store())] and len(losses) == STEPS

    assert command_line(["sweep", str(sweep_file), "--address", ray_cluster.address]) == 0
    shown = capsys.readouterr()
    assert "0 of 3 trials are to be made, 3 are over" in shown.err and "learning_rate=0.04" in shown.out


def kill_when(sweep_file: Path, address: str, seen: Callable[[], bool]) -> None:
    """Start the sweep in a process of its own, and SIGKILL it as soon as that is seen."""
    command = [sys.executable, "-m", "recurra.cli.main", "sweep", str(sweep_file), "--address", address]
    own_folder = {**os.environ, "TMPDIR": str(sweep_file.parent)}  # what it would have removed at its end
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, env=own_folder)
    while process.poll() is None and not seen():
        time.sleep(0.1)
    process.kill()
    said = process.communicate()[1]
    assert process.returncode == -signal.SIGKILL, said


def has_checkpoint(runs: Store, name: str) -> bool:
    return any(info.key.endswith("manifest.json") for info in runs.list(f"{name}/checkpoints/"))


def events_of(runs: Store, name: str, kind: str) -> list[dict[str, Any]]:
    return [event for event in read_events(runs.child(name)) if event["event"] == kind]
