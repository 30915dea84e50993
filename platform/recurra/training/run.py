"""TrainRun: everything that decides a training run, and how its parts are put together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field, model_validator

from recurra.config.section import Section
from recurra.data.dataset import Dataset
from recurra.data.pipeline import Pipeline
from recurra.data.plan import PlanOptions
from recurra.errors import ConfigError, SchemaError
from recurra.models.config import ModelConfig
from recurra.registry.config import PublishConfig
from recurra.storage.store import Store
from recurra.storage.url import open_store
from recurra.tasks.base import Task
from recurra.tasks.build import TaskConfig, task_from_dataset
from recurra.training.checkpoint import Checkpoints
from recurra.training.config import TrainConfig
from recurra.training.curriculum import Curriculum, CurriculumConfig
from recurra.training.ranks import Ranks, SingleRank
from recurra.training.step import TrainStep
from recurra.training.trainer import Trainer


@dataclass(frozen=True)
class Origin:
    """What one attempt of a run is built for."""

    attempt: str
    """A word that no other attempt has; the same on all ranks."""
    device: str
    """Where this rank computes: `cpu` or `cuda:0`."""
    train_version: int | None
    """Of the training dataset, fixed when the run was first started; None = the newest."""
    eval_version: int | None
    warn: Callable[[str], None]
    """Told of what goes wrong without ending the run."""
    fence: Callable[[], None] = lambda: None
    """Raises when another launch has taken the run over; called before each commit."""
    easier_versions: tuple[int | None, ...] = ()
    """Of the datasets of a curriculum, as `train_version`; the newest of those that are not named."""


class DataConfig(Section):
    """Which committed datasets to learn from, and in which order."""

    train: str
    """`s3://bucket/prefix` or `file:///dir` of a dataset that `recurra data write` committed."""
    eval: str | None = None
    """The dataset that evaluations look at; null = no evaluation, and the last checkpoint is the best."""
    curriculum: CurriculumConfig | None = None
    """Easier datasets that are learned first; null = none."""
    mode: Literal["auto", "buckets", "packed", "lanes"] = "auto"
    """How sequences become batches; auto = lanes with train.truncated_bptt, else buckets."""
    shuffle: bool = True
    """A new order in each epoch, decided by train.seed."""
    shuffle_window: int = Field(default=16384, ge=1)
    """Sequences that are mixed and grouped by length at a time."""
    prefetch_bytes: int = Field(default=128 << 20, ge=1 << 20)
    """Memory of each worker for data that is read ahead."""

    @property
    def easier(self) -> tuple[str, ...]:
        """Datasets of the curriculum, if there is one."""
        return () if self.curriculum is None else self.curriculum.easier


class TrainRun(Section):
    """One training run. Its name is what a second start goes on from."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,99}$")
    """Names the run and its prefix in the store: lower-case letters, digits, '.', '_', '-'."""
    task: TaskConfig
    data: DataConfig
    model: ModelConfig = ModelConfig()
    train: TrainConfig
    publish: PublishConfig | None = None
    """Where the best checkpoint goes; null = it stays in the run."""
    runs: str = "s3://recurra/runs"
    """Prefix of all runs: checkpoints, logs, reports."""

    @model_validator(mode="after")
    def _check(self) -> TrainRun:
        mode, window = self.data.mode, self.train.truncated_bptt
        if mode in ("lanes", "packed") and window is None:
            raise ValueError(
                f"data.mode is {mode}, which needs windows. Set train.truncated_bptt, such as 64, or data.mode to buckets."
            )
        if self._mode == "lanes" and self.model.bidirectional:
            raise ValueError(
                "model.bidirectional is true with train.truncated_bptt, but the half that reads from the end would begin in "
                "the next window, whose state nobody has yet. Set data.mode to packed, or bidirectional to false."
            )
        if self.data.curriculum is not None and self.train.epochs is not None:
            raise ValueError(
                f"train.epochs is {self.train.epochs} with data.curriculum, where the loss decides how often data is read. "
                "Set train.steps instead."
            )
        if self.data.curriculum is not None and self._mode != "buckets":
            raise ValueError(
                f"data.curriculum needs whole sequences, but train.truncated_bptt is {window}. Remove one of the two."
            )
        if self.publish is not None and self.publish.int8 and self.model.cell not in ("rnn", "gru", "lstm"):
            raise ValueError(
                f"publish.int8 is true, but model.cell is {self.model.cell}: rnn, gru and lstm alone step with 8-bit matrices. "
                "Set publish.int8 to false."
            )
        if self.publish is not None and self.publish.int8 and self.data.eval is None:
            raise ValueError("publish.int8 is true, but there is no data.eval to measure the loss on. Add it.")
        return self

    def open_store(self) -> Store:
        """The store of this run's prefix."""
        return open_store(f"{self.runs.rstrip('/')}/{self.name}")

    def check(self) -> None:
        """Open what the run needs, before anything is paid for.

        Raises:
            ConfigError, DataError, StorageError: A dataset is missing or does not fit the task.
        """
        train = Dataset.open(self.data.train)
        self.open_task(train)
        for url in (*self.data.easier, *filter(None, [self.data.eval])):
            other = Dataset.open(url)
            task_from_dataset(self.task, other.schema, other.metadata)
            for key in ("vocabulary", "labels"):
                if train.metadata.get(key) != other.metadata.get(key):
                    raise SchemaError(
                        f"{url} was written with another {key} than {self.data.train}, so that its numbers mean "
                        f"something else. Write both with the same {key}."
                    )

    def open_task(self, dataset: Dataset) -> Task:
        """The task, checked against the dataset and the batches that the job file asks for."""
        task = task_from_dataset(self.task, dataset.schema, dataset.metadata)
        if self._mode != "buckets" and not task.streams:
            raise ConfigError(
                f"train.truncated_bptt is {self.train.truncated_bptt}, but task {task.kind} gives one output a sequence. "
                "Remove truncated_bptt."
            )
        return task

    def count_updates(self, dataset: Dataset, task: Task) -> tuple[int, int]:
        """Updates of the first epoch, and of the whole run; easier datasets of a curriculum are not among those of the epoch."""
        batches = self._training_batches(dataset, task, SingleRank())
        return batches.batches_in_epoch(), self._steps(batches)

    def build(self, ranks: Ranks, origin: Origin) -> Trainer:
        """This rank's trainer, not yet restored."""
        store = self.open_store()
        dataset = Dataset.open(self.data.train, origin.train_version)
        task = self.open_task(dataset)
        torch.manual_seed(self.train.seed)
        update = TrainStep(task, task.build_model(self.model), self.train, ranks, device=origin.device)
        batches = self._training_batches(dataset, task, ranks)
        curriculum = self._curriculum(batches, task, ranks, origin)
        return Trainer(
            name=self.name,
            config=self.train,
            ranks=ranks,
            update=update,
            train=curriculum or batches,
            evaluation=self._evaluation(task, ranks, origin),
            checkpoints=Checkpoints(
                store.child("checkpoints"), ranks, attempt=origin.attempt, warn=origin.warn, fence=origin.fence
            ),
            steps=self._steps(batches),
            curriculum=curriculum,
        )

    @property
    def _mode(self) -> Literal["buckets", "packed", "lanes"]:
        if self.data.mode != "auto":
            return self.data.mode
        return "buckets" if self.train.truncated_bptt is None else "lanes"

    def _steps(self, batches: Pipeline) -> int:
        """Updates of the whole run."""
        limits = [self.train.steps] if self.train.steps is not None else []
        if self.train.epochs is not None:
            by_length = self._mode == "buckets" and self.train.global_batch.tokens is not None
            different = self.train.epochs if by_length or self.train.window_schedule is not None else 1
            total = sum(batches.batches_in_epoch(epoch) for epoch in range(different))
            limits.append(total * self.train.epochs // different)
        return min(limits)

    def _training_batches(self, dataset: Dataset, task: Task, ranks: Ranks) -> Pipeline:
        return self._pipeline(dataset, task, ranks, epochs=self.train.epochs, shuffle=self.data.shuffle, training=True)

    def _evaluation(self, task: Task, ranks: Ranks, origin: Origin) -> Callable[[], Pipeline] | None:
        if self.data.eval is None:
            return None
        dataset = Dataset.open(self.data.eval, origin.eval_version)
        return lambda: self._pipeline(dataset, task, ranks, epochs=1, shuffle=False)

    def _curriculum(self, last: Pipeline, task: Task, ranks: Ranks, origin: Origin) -> Curriculum | None:
        if self.data.curriculum is None:
            return None
        versions = origin.easier_versions or (None,) * len(self.data.easier)
        easier = [Dataset.open(url, version) for url, version in zip(self.data.easier, versions, strict=True)]
        shuffle = self.data.shuffle
        stages = [self._pipeline(dataset, task, ranks, epochs=None, shuffle=shuffle) for dataset in easier]
        return self.data.curriculum.build([*stages, last])

    def _pipeline(
        self, dataset: Dataset, task: Task, ranks: Ranks, *, epochs: int | None, shuffle: bool, training: bool = False
    ) -> Pipeline:
        batch = self.train.global_batch
        schedule = self.train.window_schedule if training else None
        options = PlanOptions(
            mode=self._mode,
            batch_sequences=batch.sequences,
            batch_tokens=batch.tokens,
            window=None if self._mode == "buckets" else self.train.truncated_bptt,
            window_start=schedule.start if schedule else None,
            window_growth=schedule.batches if schedule else 0,
            window_spread=schedule.spread if schedule else 0,
            lookahead=0 if self._mode == "buckets" else task.lookahead,
            shuffle=shuffle,
            seed=self.train.seed,
            bucket_window=self.data.shuffle_window,
        )
        return Pipeline(
            dataset,
            options,
            rank=ranks.rank,
            world_size=ranks.size,
            epochs=epochs,
            prefetch_bytes=self.data.prefetch_bytes,
        )
