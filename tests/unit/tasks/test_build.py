import pytest
from pydantic import TypeAdapter

from recurra.config.load import dump, parse
from recurra.config.section import Section
from recurra.errors import ConfigError, RegistryError
from recurra.tasks.build import TASKS, TaskConfig, task_from_description
from recurra.tasks.classification import ClassificationConfig
from recurra.tasks.language_model import LanguageModelConfig


class Job(Section):
    task: TaskConfig


def test_a_bare_word_is_the_short_form():
    """`task: language_model` is all that most jobs need."""
    assert parse({"task": "language_model"}, Job).task == LanguageModelConfig()


def test_the_long_form_carries_settings():
    """And an override turns the short form into the long one."""
    job = parse({"task": "classification"}, Job, ["task.label_smoothing=0.1"])

    assert job.task == ClassificationConfig(label_smoothing=0.1)
    assert parse(dump(job), Job) == job


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ("langage_model", "task.kind is 'langage_model', which is not a task. Did you mean 'language_model'"),
        ({"horizon": 3}, "task has no kind. Add one of: algorithmic, anomaly"),
        ({"kind": "forecasting", "horizn": 3}, "is not a setting. Did you mean 'horizon'"),
        ({"kind": "forecasting", "quantiles": [0.1]}, "Write rising numbers above 0 and below 1"),
    ],
)
def test_a_wrong_task_says_what_to_write(task, message):
    """The job file is what users touch first."""
    with pytest.raises(ConfigError, match=message):
        parse({"task": task}, Job)


def test_editors_know_both_forms():
    """`recurra schema` feeds completion: the words alone, and the settings of each kind."""
    schema = TypeAdapter(TaskConfig).json_schema()
    text = str(schema)

    assert all(kind in text for kind in TASKS)
    assert "label_smoothing" in text


def test_a_bundle_of_a_newer_version_says_so():
    """An old replica may meet a model that a newer platform published."""
    with pytest.raises(RegistryError, match="of kind 'juggling', which this version of Recurra does not know"):
        task_from_description({"kind": "juggling"})
