"""The card of a model: what it costs, what it was made of, and what it is not for. One is in every bundle.

After "Model Cards for Model Reporting" (Mitchell et al. 2019, arXiv 1810.03993), as far as a run knows it by itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from recurra.models.cost import cost_of
from recurra.models.sequence import Model
from recurra.tasks.base import Task


def card_of(
    task: Task, model: Model, data: Mapping[str, Mapping[str, Any] | None], window: int | None = None
) -> dict[str, Any]:
    """The card, as JSON.

    Args:
        task: What the model is for.
        model: As it is published.
        data: `train` and `eval`: address, version, digest, sequences, steps and longest of each dataset; None where
            there is none.
        window: Steps that gradients reached back (`train.truncated_bptt`); None = whole sequences.
    """
    return {
        **asdict(cost_of(model)),
        "sessions": model.steppable,
        "data": {split: dict(facts) for split, facts in data.items() if facts},
        "limits": [*task.limits(), *_limits_of_model(model), *_limits_of_data(data, window)],
    }


def _limits_of_model(model: Model) -> list[str]:
    if model.steppable:
        return []
    return ["Reads whole sequences alone: it has no sessions, since each answer needs the end of its sequence."]


def _limits_of_data(data: Mapping[str, Mapping[str, Any] | None], window: int | None) -> list[str]:
    limits = []
    train = data.get("train")
    if train and "longest" in train and window is None:
        limits.append(f"Trained on sequences of at most {train['longest']:,} steps; longer ones are extrapolation.")
    if window is not None:
        limits.append(f"Gradients reached back {window:,} steps: what lies further back was learned at second hand.")
    if not data.get("eval"):
        limits.append("Nothing was held out: it has no metrics on data that it has not seen.")
    return limits
