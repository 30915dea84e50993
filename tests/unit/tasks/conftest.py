"""Batches of small real datasets, through the real writer and pipeline."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from recurra.data.batch import Batch
from recurra.data.dataset import Dataset
from recurra.data.pipeline import Pipeline
from recurra.data.plan import PlanOptions
from recurra.data.schema import SequenceSchema
from recurra.data.write import DatasetWriter

Write = Callable[[SequenceSchema, Mapping[str, Any], Iterable[Mapping[str, Any]]], Dataset]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes a dataset; each call has a directory of its own."""
    count = 0

    def write_dataset(
        schema: SequenceSchema, metadata: Mapping[str, Any], examples: Iterable[Mapping[str, Any]]
    ) -> Dataset:
        nonlocal count
        count += 1
        url = f"file://{tmp_path}/dataset-{count}"
        with DatasetWriter(url, schema, metadata) as writer:
            for example in examples:
                writer.write(example)
        return Dataset.open(url)

    return write_dataset


def one_epoch(dataset: Dataset, *, rank: int = 0, world_size: int = 1, **options: Any) -> Iterator[Batch]:
    """The batches of one pass, in the manifest's order unless told otherwise."""
    plan = PlanOptions(**{"shuffle": False, **options})
    pipeline = Pipeline(dataset, plan, rank=rank, world_size=world_size, epochs=1)
    try:
        yield from pipeline
    finally:
        pipeline.close()
