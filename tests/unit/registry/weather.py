"""A small real model, its task, and what a run would say of it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import torch

from recurra.models.config import ModelConfig
from recurra.models.weights import save_weights
from recurra.registry.bundle import BundleParts
from recurra.registry.registry import Registry
from recurra.tasks.classification import ClassificationConfig, ClassificationTask

MODEL = ModelConfig(cell="lstm", hidden_size=4)
TASK = ClassificationTask(ClassificationConfig(), ["calm", "storm"], None, 3)


def parts(**changes: object) -> BundleParts:
    """What a run would say of the model of `weights`."""
    model = TASK.build_model(MODEL)
    values = {
        "task": TASK.describe(),
        "model": MODEL.model_dump(mode="json"),
        "shape": vars(model.shape),
        "state_spec": model.state_spec.to_json(),
        "metrics": {"accuracy": 0.75},
        "data_digest": "d" * 64,
        "lineage": {"run": "weather", "step": 20, "versions": {"recurra": "0.1.0"}},
    }
    return BundleParts(**{**values, **changes})  # type: ignore[arg-type]


def weights(seed: int = 0) -> bytes:
    torch.manual_seed(seed)
    return save_weights(TASK.build_model(MODEL))


def clock() -> Iterator[str]:
    """A second later each time."""
    return (f"2026-01-01T00:{second // 60:02}:{second % 60:02}+00:00" for second in itertools.count())


def registry_at(url: str, actor: str = "ada@host") -> Registry:
    ticks = clock()
    return Registry(url, actor=actor, now=lambda: next(ticks))
