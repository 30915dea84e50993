"""The job file: one spec that is trained, published and served."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable
from pathlib import Path

import yaml
from pydantic import Field

from recurra.config.load import dump, load_file, parse
from recurra.config.section import Section
from recurra.errors import ConfigError
from recurra.models.config import ModelConfig
from recurra.registry.config import PublishConfig
from recurra.serving.config import ServeConfig
from recurra.serving.run import ServeRun
from recurra.tasks.build import TaskConfig
from recurra.training.config import TrainConfig
from recurra.training.run import DataConfig, TrainRun

INLINE = "base64:"
"""What a job file starts with that is handed over in a command line instead of a file."""


class JobFile(Section):
    """What is trained from what, how, and how it is served. `train` and `serve` may each be left out."""

    name: str = Field(pattern=r"^[a-z0-9]([a-z0-9-]*[a-z0-9])?$", max_length=63)
    """Of the run and of the service: lower-case letters, digits and hyphens. A run of the same name goes on."""
    task: TaskConfig
    """What the model is for; a bare word is the short form of `{kind: word}`."""
    data: DataConfig | None = None
    model: ModelConfig = ModelConfig()
    train: TrainConfig | None = None
    publish: PublishConfig | None = None
    serve: ServeConfig | None = None
    runs: str = "s3://recurra/runs"
    """Where checkpoints, metrics and reports of runs are kept."""

    def train_run(self) -> TrainRun:
        """What `training` takes.

        Raises:
            ConfigError: The file has no `train` or no `data` section, or they contradict each other.
        """
        if self.train is None:
            raise ConfigError(
                f"The job file '{self.name}' has no 'train' section. Add one, such as 'train: {{steps: 1000}}'."
            )
        if self.data is None:
            raise ConfigError(
                f"The job file '{self.name}' has no 'data' section. "
                "Add 'data: {train: s3://bucket/prefix}', where 'recurra data write' put a dataset."
            )
        values = dump(self)
        del values["serve"]
        return parse(values, TrainRun, source=f"job '{self.name}'")

    def serve_run(self) -> ServeRun:
        """What `serving` takes.

        Raises:
            ConfigError: Neither `serve.model` nor `publish` says which model.
        """
        serve = self.serve or ServeConfig()
        publish = self.publish
        if serve.model is None and publish is None:
            raise ConfigError(
                f"The job file '{self.name}' does not say which model to serve. "
                "Add 'publish: {model: NAME, alias: production}', or 'serve: {model: NAME@production}'."
            )
        registry = (publish or PublishConfig(model=self.name)).registry
        model = serve.model or _reference(publish)
        values = {"name": self.name, "model": model, "registry": registry, "serve": dump(serve)}
        parse(values, ServeRun, source=f"job '{self.name}'")  # so that what contradicts itself is said in our words
        return ServeRun(name=self.name, model=model, registry=registry, serve=serve)

    def to_yaml(self) -> str:
        """The whole job, overrides included, as a file that `load_job` reads back to an equal one."""
        return yaml.safe_dump(dump(self), sort_keys=False, allow_unicode=True)

    def inline(self) -> str:
        """The job as one word for a command line."""
        return INLINE + base64.b64encode(self.to_yaml().encode()).decode()


def load_job(source: str | Path, overrides: Iterable[str] = ()) -> JobFile:
    """Read a job file.

    Args:
        source: Its path, or what `JobFile.inline` gave.
        overrides: Items such as `train.steps=100`.

    Raises:
        ConfigError: With one line for each fault, each naming the dotted key and what to write.
    """
    if not str(source).startswith(INLINE):
        return load_file(source, JobFile, overrides)
    try:
        values = yaml.safe_load(base64.b64decode(str(source).removeprefix(INLINE), validate=True))
    except (binascii.Error, ValueError, yaml.YAMLError) as exc:
        raise ConfigError(f"The job after '{INLINE}' cannot be decoded ({exc}). Submit the job file again.") from exc
    return parse(values, JobFile, overrides, source="submitted job")


def _reference(publish: PublishConfig | None) -> str:
    assert publish is not None
    return f"{publish.model}@{publish.alias}" if publish.alias else publish.model
