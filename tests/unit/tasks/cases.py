"""What the laws of every task are held against."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from recurra.data.dataset import Dataset
from recurra.models.config import ModelConfig
from recurra.tasks.base import Task


@dataclass
class Case:
    """A task, its small dataset, and an instance of it."""

    dataset: Dataset
    task: Task
    instance: Any
    model: ModelConfig = field(default_factory=lambda: ModelConfig(hidden_size=6))
    options: dict[str, Any] = field(default_factory=dict)
    """Of its requests."""
