"""A published model on a dataset: the task's metrics, with confidence intervals by bootstrap over sequences."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import TypeAdapter

from recurra.data.dataset import Dataset
from recurra.data.pipeline import Pipeline
from recurra.data.plan import PlanOptions
from recurra.errors import ConfigError, SchemaError
from recurra.registry.loading import LoadedModel
from recurra.tasks.base import Task, TaskTensors
from recurra.tasks.build import AnyTaskConfig, TaskConfig, task_from_dataset

BATCH_TOKENS = 16384
"""Time steps of a batch, padding included: a longer sequence is a batch of its own."""


@dataclass(frozen=True)
class Resampling:
    """How the intervals are found."""

    samples: int = 1000
    """Times that as many sequences as there are are drawn with replacement (Efron 1979); 0 = no intervals."""
    confidence: float = 0.95
    """Share of the drawn metrics that lies between the ends of an interval."""
    seed: int = 0


@dataclass(frozen=True)
class Metric:
    """One metric over a dataset."""

    value: float
    low: float | None = None
    """Ends of the percentile interval; None without resampling, or with a single sequence."""
    high: float | None = None


@dataclass(frozen=True)
class Score:
    """A model on a dataset."""

    metrics: dict[str, Metric]
    sequences: int
    tokens: int
    """Real time steps."""
    digest: str
    """Of the dataset's manifest."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def score(
    loaded: LoadedModel,
    dataset: Dataset,
    resampling: Resampling = Resampling(),
    *,
    tell: Callable[[int, int], None] = lambda done, total: None,
) -> Score:
    """Run the model over whole sequences; each counts for itself, in whichever batch it was.

    Args:
        loaded: Model and task.
        dataset: With the columns, vocabulary and labels that the task was trained with.
        resampling: Of sequences, which are what is independent in the data; time steps of one are not.
        tell: Called with sequences done and in all, after each batch.

    Raises:
        SchemaError: The dataset was written with another vocabulary or other labels, or lacks a column.
        ConfigError: A setting of `resampling` is out of range.
    """
    _check(resampling)
    _check_fits(loaded.task, dataset)
    rows: list[dict[str, float]] = []
    tokens = 0
    for found, steps in _per_sequence(loaded, dataset):
        rows += found
        tokens += steps
        tell(len(rows), dataset.sequences)
    names = sorted({name for row in rows for name in row})
    sums_NS = np.array([[row.get(name, 0.0) for name in names] for row in rows], np.float64).reshape(len(rows), -1)
    return Score(_metrics(loaded.task, names, sums_NS, resampling), len(rows), tokens, str(dataset.digest))


def _metrics(task: Task, names: list[str], sums_NS: NDArray[np.float64], how: Resampling) -> dict[str, Metric]:
    def measured(sums_S: NDArray[np.float64]) -> dict[str, float]:
        sums = dict(zip(names, sums_S.tolist(), strict=True))
        return task.metrics(sums.pop("", 0.0), sums.pop("#", 0.0), sums)

    values = measured(sums_NS.sum(0))
    count = len(sums_NS)
    if count < 2 or not how.samples:
        return {name: Metric(value) for name, value in values.items()}
    generator = np.random.default_rng(how.seed)
    draws = [measured(generator.multinomial(count, np.full(count, 1 / count)) @ sums_NS) for _ in range(how.samples)]
    tail = 50 * (1 - how.confidence)
    ends = {name: np.percentile([draw[name] for draw in draws], [tail, 100 - tail]) for name in values}
    return {name: Metric(value, *map(float, ends[name])) for name, value in values.items()}


@torch.no_grad()
def _per_sequence(loaded: LoadedModel, dataset: Dataset) -> Iterator[tuple[list[dict[str, float]], int]]:
    """For each batch: the sums of each of its sequences (`""` total, `"#"` count), and its real time steps."""
    task, model = loaded.task, loaded.model.eval()
    options = PlanOptions(mode="buckets", batch_tokens=max(BATCH_TOKENS, int(dataset.lengths().max())), shuffle=False)
    pipeline = Pipeline(dataset, options, rank=0, world_size=1, epochs=1)
    try:
        for batch in pipeline:
            tensors = task.tensors(batch)
            outputs, _ = model(tensors.inputs, None, tensors.lengths, tensors.reset)
            real = [row for row, sequence in enumerate(batch.ids) if sequence >= 0]
            yield [_sums(task, outputs[row : row + 1], _row(tensors, row)) for row in real], batch.global_tokens
    finally:
        pipeline.close()


def _row(tensors: TaskTensors, row: int) -> TaskTensors:
    one = slice(row, row + 1)
    return replace(
        tensors,
        inputs=tensors.inputs[one],
        lengths=tensors.lengths[one],
        reset=None if tensors.reset is None else tensors.reset[one],
        targets={name: value[one] for name, value in tensors.targets.items()},
    )


def _sums(task: Task, outputs: torch.Tensor, tensors: TaskTensors) -> dict[str, float]:
    loss = task.loss(outputs, tensors)
    return {"": loss.total.item(), "#": float(loss.count), **{name: float(value) for name, value in loss.sums.items()}}


def _check(resampling: Resampling) -> None:
    if not 0 < resampling.confidence < 1:
        raise ConfigError(f"The confidence is {resampling.confidence:g}. Give a share between 0 and 1, such as 0.95.")
    if resampling.samples < 0:
        raise ConfigError(f"There are {resampling.samples} samples. Give a number from 0, which means no intervals.")


def _check_fits(task: Task, dataset: Dataset) -> None:
    described = task.describe()
    config: AnyTaskConfig = TypeAdapter(TaskConfig).validate_python({"kind": task.kind, **described["config"]})
    task_from_dataset(config, dataset.schema, dataset.metadata)
    for key in ("vocabulary", "labels"):
        wanted = described.get(key)
        if wanted is not None and dataset.metadata.get(key) != wanted:
            raise SchemaError(
                f"{dataset.url} was written with another {key} than the model was trained with, so that its numbers mean "
                f"something else. Write it with the {key} of the training data (recurra data write --like)."
            )
