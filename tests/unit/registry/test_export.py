"""Exported graphs compute what the model computes, at lengths that they were not made from."""

from __future__ import annotations

import io
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from recurra.data.vocabulary import ByteVocabulary
from recurra.errors import ConfigError, IntegrityError, ModelError
from recurra.models.config import ModelConfig
from recurra.models.weights import save_weights
from recurra.registry import export as room
from recurra.registry.bundle import Bundle, BundleParts
from recurra.registry.export import Export, export
from recurra.registry.loading import LoadedModel, build
from recurra.tasks.base import Task
from recurra.tasks.classification import ClassificationConfig, ClassificationTask
from recurra.tasks.language_model import LanguageModelConfig, LanguageModelTask

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")

CLASSES = ClassificationTask(ClassificationConfig(), ["calm", "storm"], None, 3)


def words() -> Task:
    return LanguageModelTask.from_description(
        {
            "kind": "language_model",
            "config": LanguageModelConfig().model_dump(mode="json"),
            "vocabulary": ByteVocabulary().to_json(),
        }
    )


def load(task: Task, **model: Any) -> LoadedModel:
    config = ModelConfig.model_validate({"hidden_size": 6, **model})
    torch.manual_seed(3)
    built = task.build_model(config)
    shape, spec = asdict(built.shape), built.state_spec.to_json()
    parts = BundleParts(task=task.describe(), model=config.model_dump(mode="json"), shape=shape, state_spec=spec)
    weights = save_weights(built)
    return build(Bundle.of(parts, weights, "2026-01-01T00:00:00"), weights, "here")


def session(found: Export, kind: str) -> Any:
    (graph,) = (graph for graph in found.graphs if graph.kind == kind)
    return onnxruntime.InferenceSession(graph.data, providers=["CPUExecutionProvider"])


@pytest.mark.parametrize(
    "model",
    [
        {"cell": "rnn", "nonlinearity": "relu", "layers": 2, "residual": True},
        {"cell": "gru", "learned_initial_state": True},
        {"cell": "lstm", "layers": 2, "embedding_size": 6, "tied_embeddings": True},
    ],
    ids=lambda model: model["cell"],
)
def test_step_and_sequence_agree_with_the_model_and_with_each_other(model: dict[str, Any]) -> None:
    """Ten steps, one by one in onnxruntime, are one call of the sequence graph, and are what the model says."""
    loaded = load(words(), **model)
    found = export(loaded, "onnx")
    assert [graph.kind for graph in found.graphs] == ["step", "sequence"] and found.refused == {}
    assert max(graph.largest_difference for graph in found.graphs) < 1e-5

    tokens_BT = np.random.default_rng(1).integers(0, 256, (3, 10))
    state = {f"state.{name}": value.detach().numpy() for name, value in loaded.model.zero_state(3).items()}
    whole, *_ = session(found, "sequence").run(None, {"input": tokens_BT, **state})
    step = session(found, "step")
    outputs = []
    for t in range(10):
        output, *after = step.run(None, {"input": tokens_BT[:, t], **state})
        outputs.append(output)
        state = dict(zip(state, after, strict=True))
    with torch.no_grad():
        wanted, _ = loaded.model(torch.from_numpy(tokens_BT))
    np.testing.assert_allclose(whole, wanted.numpy(), atol=1e-5)
    np.testing.assert_allclose(np.stack(outputs, 1), wanted.numpy(), atol=1e-5)


@pytest.mark.parametrize(
    ("model", "kinds"),
    [
        ({"cell": "lstm", "bidirectional": True}, ["sequence"]),
        ({"cell": "gru", "attention": "additive"}, ["sequence"]),
        ({"cell": "gru", "pooling": "mean"}, ["step", "sequence"]),
        ({"cell": "ntm", "ntm": {"memory_rows": 4, "memory_width": 3}}, ["step"]),
        ({"cell": "ntm", "ntm": {"memory_rows": 4, "memory_width": 3, "paired_heads": True}}, ["step"]),
        ({"cell": "lstm", "layer_norm": True, "pooling": "max"}, ["step"]),
        ({"cell": "mingru"}, ["step"]),
    ],
    ids=str,
)
def test_what_cannot_be_exported_is_refused_with_what_can(model: dict[str, Any], kinds: list[str]) -> None:
    """A graph that holds for one length only would answer wrongly at every other: better none."""
    found = export(load(CLASSES, **model), "onnx")
    assert [graph.kind for graph in found.graphs] == kinds
    assert all("Export the" in reason for reason in found.refused.values())
    assert len(found.refused) + len(kinds) == 2


def test_nothing_to_export_is_an_error() -> None:
    """The command ends with the reason instead of an empty directory."""
    loaded = load(CLASSES, cell="lstm", bidirectional=True)
    with pytest.raises(ModelError, match=r"step graph cannot be exported: the model cannot step, since it reads each"):
        export(loaded, "onnx", ["step"])


@pytest.mark.parametrize("model", [{"cell": "lstm"}, {"cell": "ntm", "ntm": {"memory_rows": 4, "memory_width": 3}}])
def test_torch_export_reads_back_and_agrees(model: dict[str, Any]) -> None:
    """For ExecuTorch, AOTInductor and C++ programs; the program is checked as it was written."""
    loaded = load(CLASSES, **model)
    found = export(loaded, "torch-export", ["step"])
    program = torch.export.load(io.BytesIO(found.graphs[0].data))
    x_BD = torch.randn(5, 3)
    state = loaded.model.zero_state(5)
    with torch.no_grad():
        wanted, _ = loaded.model.step(x_BD, state)
        output, *_ = program.module()(x_BD, *state.values())
    assert torch.allclose(output, wanted, atol=1e-5)


def test_a_graph_that_differs_is_not_handed_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """An exporter that gets an operator wrong is noticed here, not by the user's users."""

    def wrong(flat: Any, arguments: Any, inputs: Any, outputs: Any) -> Any:
        return b"graph", lambda values: [value + 0.01 for value in flat(*values)]

    monkeypatch.setattr(room, "_make_onnx", wrong)
    with pytest.raises(IntegrityError, match=r"exported step graph differs from the model by 0\.01"):
        export(load(CLASSES, cell="gru"), "onnx")


def test_the_files_say_how_to_call_them(tmp_path: Path) -> None:
    """Names, order and start of the state: whoever runs the graph has no Recurra."""
    loaded = load(words(), cell="gru")
    files = export(loaded, "onnx").write(loaded, tmp_path / "out")
    about = json.loads((tmp_path / "out" / "export.json").read_text())

    assert [file.name for file in files] == ["step.onnx", "sequence.onnx", "export.json"]
    assert about["graphs"][0]["inputs"] == ["input", "state.core.0.h"]
    assert about["graphs"][0]["outputs"] == ["output", "next.core.0.h"]
    assert about["digest"] == loaded.bundle.digest and about["task"]["kind"] == "language_model"
    assert onnxruntime.InferenceSession(files[0]).get_inputs()[0].name == "input"


def test_without_the_packages_it_says_which_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are an extra: a server needs neither."""
    monkeypatch.setattr(room.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"needs onnx, which is not installed. .* 'recurra\[export\]'"):
        export(load(CLASSES, cell="gru"), "onnx")
