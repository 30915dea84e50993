"""From a bundle and its weights to a task and a model that serving can use."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
from pydantic import ValidationError

from recurra.errors import ModelError, RegistryError
from recurra.models.config import ModelConfig
from recurra.models.sequence import Model
from recurra.models.weights import load_weights
from recurra.registry.bundle import Bundle
from recurra.registry.registry import Registry
from recurra.tasks.base import Task
from recurra.tasks.build import task_from_description


@dataclass(frozen=True)
class LoadedModel:
    """A bundle, ready to serve."""

    bundle: Bundle
    task: Task
    model: Model
    """In eval mode, on the CPU."""


def load_model(registry: Registry, reference: str) -> LoadedModel:
    """Fetch, check and build what a reference means.

    Raises:
        RegistryError: See `Registry.fetch` and `build`.
        IntegrityError: The bytes differ from those that were published; the message names the file.
    """
    return build(*registry.fetch(reference))


def build(bundle: Bundle, weights: bytes, url: str) -> LoadedModel:
    """What the bundle describes, with these weights, which have been checked.

    Args:
        bundle: As published.
        weights: Of `model.safetensors`.
        url: The bundle's address, for messages.

    Raises:
        RegistryError: This version of Recurra does not know the task, or would build another model or state.
    """
    task = _task(bundle, url)
    return LoadedModel(bundle, task, _model(bundle, task, weights, url))


def _task(bundle: Bundle, url: str) -> Task:
    try:
        return task_from_description(bundle.task)
    except (ValidationError, KeyError, TypeError) as exc:
        raise RegistryError(
            f"{url} describes its task in words that this version of Recurra does not know: {exc}. "
            "Use the version that published it, or train again."
        ) from exc


def _model(bundle: Bundle, task: Task, weights: bytes, url: str) -> Model:
    try:
        # Initial weights are drawn and overwritten; the caller's random numbers stay as they are.
        with torch.random.fork_rng(devices=[]):
            model = task.build_model(ModelConfig.model_validate(bundle.model))
        if asdict(model.shape) != bundle.shape:
            raise ModelError(f"its model is of shape {bundle.shape}, and the task would build {asdict(model.shape)}")
        load_weights(model, weights)
    except (ValidationError, ModelError, TypeError) as exc:
        raise RegistryError(
            f"{url} does not fit this version of Recurra: {exc}. Use the version that published it, or train again."
        ) from exc
    if model.state_spec.to_json() != bundle.state_spec:
        raise RegistryError(
            f"{url} has another layout of its state than this version of Recurra gives the same model. "
            "Use the version that published it, or train again."
        )
    return model.eval()
