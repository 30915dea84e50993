"""From the `task` of a job file, or of a bundle, to a task. A new task is made known here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from recurra.config.load import nearest
from recurra.data.schema import SequenceSchema
from recurra.errors import RegistryError
from recurra.tasks.algorithmic import AlgorithmicConfig, AlgorithmicTask
from recurra.tasks.anomaly import AnomalyConfig, AnomalyTask
from recurra.tasks.base import Task
from recurra.tasks.classification import ClassificationConfig, ClassificationTask
from recurra.tasks.forecast_config import ForecastingConfig
from recurra.tasks.forecasting import ForecastingTask
from recurra.tasks.language_model import LanguageModelConfig, LanguageModelTask
from recurra.tasks.music import MusicConfig, MusicTask
from recurra.tasks.regression import RegressionConfig, RegressionTask
from recurra.tasks.tagging import TaggingConfig, TaggingTask
from recurra.tasks.transcription import TranscriptionConfig, TranscriptionTask
from recurra.tasks.translation import TranslationConfig, TranslationTask
from recurra.tasks.video import FramesConfig, FramesTask

TASKS: dict[str, type[Task]] = {
    task.kind: task
    for task in (
        LanguageModelTask,
        ClassificationTask,
        RegressionTask,
        TaggingTask,
        TranslationTask,
        TranscriptionTask,
        ForecastingTask,
        MusicTask,
        AnomalyTask,
        FramesTask,
        AlgorithmicTask,
    )
}
"""Kind -> task."""

Kind = Literal[
    "language_model",
    "classification",
    "regression",
    "tagging",
    "translation",
    "transcription",
    "forecasting",
    "music",
    "anomaly",
    "frames",
    "algorithmic",
]


def _long_form(value: Any) -> Any:
    """`language_model` as `{kind: language_model}`; an unknown kind names the nearest known one."""
    if isinstance(value, str):
        value = {"kind": value}
    if isinstance(value, Mapping):
        kind = value.get("kind")
        if kind is None:
            raise ValueError(f"task has no kind. Add one of: {', '.join(sorted(TASKS))}.")
        if kind not in TASKS:
            raise ValueError(f"task.kind is {kind!r}, which is not a task. {nearest(str(kind), TASKS)}")
    return value


AnyTaskConfig = (
    LanguageModelConfig
    | ClassificationConfig
    | RegressionConfig
    | TaggingConfig
    | TranslationConfig
    | TranscriptionConfig
    | ForecastingConfig
    | MusicConfig
    | AnomalyConfig
    | FramesConfig
    | AlgorithmicConfig
)  # fmt: skip

_LongForm = Annotated[AnyTaskConfig, Field(discriminator="kind")]

TaskConfig = Annotated[_LongForm, BeforeValidator(_long_form, json_schema_input_type=Kind | _LongForm)]
"""The `task` section of a job file: a kind alone, or a mapping with `kind` and the task's own settings."""


def task_from_dataset(config: AnyTaskConfig, schema: SequenceSchema, metadata: Mapping[str, Any]) -> Task:
    """The task of a job file, fitted to the dataset that it trains on.

    Raises:
        SchemaError: The dataset lacks what the task needs.
    """
    return TASKS[config.kind].from_dataset(config, schema, metadata)


def task_from_description(description: Mapping[str, Any]) -> Task:
    """The task that `Task.describe` described, such as a bundle holds.

    Raises:
        RegistryError: The description is of a kind that this version does not know.
    """
    kind = description.get("kind")
    if kind not in TASKS:
        raise RegistryError(
            f"The bundle's task is of kind {kind!r}, which this version of Recurra does not know "
            f"(it knows {', '.join(sorted(TASKS))}). Serve it with the version that published it."
        )
    return TASKS[kind].from_description(description)
