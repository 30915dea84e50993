"""recurra evaluate and export: a published model, measured and taken elsewhere."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from recurra.data.schema import Column, SequenceSchema
from recurra.data.vocabulary import ByteVocabulary
from recurra.data.write import DatasetWriter
from recurra.models.config import ModelConfig
from recurra.models.weights import save_weights
from recurra.registry.bundle import BundleParts
from recurra.registry.registry import Registry
from recurra.tasks.classification import ClassificationConfig, ClassificationTask

from .conftest import Command

TASK = ClassificationTask(ClassificationConfig(), ["calm", "storm"], ByteVocabulary(), None)


@pytest.fixture
def store(local_url: str) -> str:
    """A registry with `weather` (both ways) and `fast`, and a dataset of 12 sequences under `text`."""
    for name, config in (("weather", {"bidirectional": True}), ("fast", {})):
        settings = ModelConfig.model_validate({"cell": "gru", "hidden_size": 4, **config})
        model = TASK.build_model(settings)
        parts = BundleParts(
            task=TASK.describe(),
            model=settings.model_dump(mode="json"),
            shape=vars(model.shape),
            state_spec=model.state_spec.to_json(),
        )
        Registry(local_url).publish(name, parts, save_weights(model), "production")
    vocabulary = ByteVocabulary()
    schema = SequenceSchema((Column("tokens", vocabulary.dtype), Column("label", "uint8", axis="sequence")))
    metadata = {"vocabulary": vocabulary.to_json(), "labels": ["calm", "storm"]}
    with DatasetWriter(f"{local_url}/text", schema, metadata) as writer:
        for number in range(12):
            writer.write({"tokens": vocabulary.encode(f"day {number}"), "label": number % 2})
    return local_url


def test_evaluate_shows_each_metric_with_its_interval(recurra: Command, store: str) -> None:
    """On twelve sequences the accuracy is hardly known, and the table says so."""
    shown = recurra("evaluate", "weather", f"{store}/text", "-r", store, "--samples", 200)
    assert shown.code == 0, shown.err
    assert "accuracy" in shown.out and max(map(len, shown.out.splitlines())) <= 80
    assert "12 sequences" in shown.err and "95% intervals of 200 bootstrap samples" in shown.err
    found = recurra("evaluate", "weather@production", f"{store}/text", "-r", store, "--json").json
    accuracy = found["metrics"]["accuracy"]
    assert accuracy["low"] <= accuracy["value"] <= accuracy["high"] and accuracy["high"] - accuracy["low"] > 0.2
    assert found["sequences"] == 12


def test_export_writes_what_can_be_and_says_what_cannot(recurra: Command, store: str, tmp_path: Path) -> None:
    """A bidirectional model has no step; its sequence graph is written all the same."""
    pytest.importorskip("onnxruntime")
    out = tmp_path / "graphs"
    shown = recurra("export", "weather", "-r", store, "-O", out)
    assert shown.code == 0 and "No step graph: the model cannot step" in " ".join(shown.err.split())
    assert sorted(file.name for file in out.iterdir()) == ["export.json", "sequence.onnx"]
    assert json.loads((out / "export.json").read_text())["graphs"][0]["largest_difference"] < 1e-5
    found = recurra("export", "fast", "-r", store, "-O", tmp_path / "fast", "--graph", "step", "--json").json
    assert [graph["kind"] for graph in found["graphs"]] == ["step"] and found["refused"] == {}


def test_faults_have_their_exit_codes(recurra: Command, store: str, tmp_path: Path) -> None:
    """5 for what the model cannot do or is not, 4 for data that is not there."""
    pytest.importorskip("onnxruntime")
    refused = recurra("export", "weather", "-r", store, "--graph", "step", "-O", tmp_path / "none")
    assert refused.code == 5 and "Export the sequence graph" in refused.err and not (tmp_path / "none").exists()
    assert recurra("evaluate", "wether", f"{store}/text", "-r", store).code == 5
    assert recurra("evaluate", "weather", f"{store}/nothing", "-r", store).code in (3, 4)


@pytest.mark.parametrize("command", ["evaluate", "export"])
def test_help_has_an_example(recurra: Command, command: str) -> None:
    """The first thing that is copied."""
    assert f"Example: recurra {command} sentiment@production" in " ".join(recurra(command, "--help").out.split())
