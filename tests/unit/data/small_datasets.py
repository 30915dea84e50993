"""Small real datasets whose every step says which sequence it belongs to, and streams without threads."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from recurra.data.batch import Batch
from recurra.data.blocks import BlockSource
from recurra.data.dataset import Dataset
from recurra.data.pipeline import build_stream
from recurra.data.plan import PlanOptions, Position, Share
from recurra.data.schema import Column, SequenceSchema
from recurra.data.write import DatasetWriter

_MEMORY = Path("/dev/shm")
_FAST = tempfile.TemporaryDirectory(dir=_MEMORY if _MEMORY.is_dir() else None)
"""Gone when the tests end. In memory where that is possible: hundreds of small datasets wait for no disk."""

SCHEMA = SequenceSchema(
    (
        Column("step", "uint32"),
        Column("pair", "float32", width=2),
        Column("label", "int32", "sequence"),
        Column("name", "string", "sequence"),
    )
)
"""`step` counts all steps of the dataset from 1, so that a value tells sequence and step, and 0 is padding."""


def new_url() -> str:
    """An empty directory as the address of a store."""
    return f"file://{tempfile.mkdtemp(dir=_FAST.name)}"


def example(number: int, first_step: int, length: int) -> dict[str, object]:
    """Sequence `number`, whose first step is the dataset's `first_step`."""
    step = np.arange(first_step + 1, first_step + 1 + length, dtype=np.uint32)
    return {"step": step, "pair": np.stack([step, -step.astype(np.float32)], 1), "label": number, "name": f"n{number}"}


def write_lengths(url: str, lengths: Sequence[int], *, block_bytes: int = 400, shard_bytes: int = 4000) -> Dataset:
    """A dataset of sequences of these lengths, in many small blocks and shards."""
    first = np.cumsum([0, *lengths])
    with DatasetWriter(url, SCHEMA, block_bytes=block_bytes, shard_bytes=shard_bytes) as writer:
        for number, length in enumerate(lengths):
            writer.write(example(number, int(first[number]), length))
    return Dataset.open(url)


def run(
    dataset: Dataset, options: PlanOptions, share: Share | None = None, start: Position | None = None
) -> Iterator[Batch]:
    """One epoch from a position on, as the pipeline makes it, but in this thread."""
    stream = build_stream(dataset, options, share or Share())
    source = BlockSource(dataset.url, dataset.manifest)
    for chunk in stream.chunks(start or Position()):
        rows = {}
        for place in chunk.places.tolist():
            rows[place] = stream.prepare(chunk, place, source.read([int(chunk.order.blocks[place])])[0])
        assembled = chunk.assemble(rows)
        for index in range(assembled.batches):
            yield assembled.batch(index, assembled.behind(index).to_json(dataset.manifest, options))


def run_world(
    dataset: Dataset, options: PlanOptions, world_size: int, start: Position | None = None
) -> list[list[Batch]]:
    """For each step the batches of all ranks, which must be equally many."""
    ranks = [list(run(dataset, options, Share(rank, world_size), start)) for rank in range(world_size)]
    return [list(batches) for batches in zip(*ranks, strict=True)]


def real_rows(batches: Sequence[Batch]) -> list[tuple[object, ...]]:
    """The rows of one step over all ranks that are not filler, as plain values: what must not depend on the world size."""
    rows: list[tuple[object, ...]] = []
    for batch in batches:
        for row in np.flatnonzero(batch.lengths):
            columns = tuple((name, *values[row : row + 1].tolist()) for name, values in batch.columns.items())
            lane = None if batch.lanes is None else int(batch.lanes[row])
            facts = (int(batch.ids[row]), int(batch.lengths[row]), float(batch.weight[row]), lane)
            rows.append((*facts, batch.reset[row].tolist(), columns))
    return rows
