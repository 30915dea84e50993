"""Random problems as a committed dataset, which is how they come to the ordinary road."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from recurra.data.dataset import Dataset
from recurra.data.write import DatasetWriter
from recurra.errors import NotFoundError
from recurra.tasks.problems.base import Problem

Ranges = Sequence[tuple[int, int]]
"""Of each size of a problem: the smallest and the largest that are drawn."""


def write_problems(
    url: str,
    problem: Problem,
    count: int,
    ranges: Ranges,
    *,
    seed: int,
    easier: Sequence[tuple[int, Ranges]] = (),
) -> str:
    """Write problems unless something is there already; gives a line that says what is there now.

    Args:
        url: `s3://bucket/prefix` or `file:///dir`.
        problem: Its description goes into the dataset, for the task.
        count: Sequences.
        ranges: As `Problem.examples` takes them.
        seed: Another one for training than for evaluation.
        easier: How many problems of which sizes stand before the others, in this order: a curriculum, for a run that reads
            the dataset as it was written (`data.shuffle: false`).
    """
    try:
        return f"{url} already holds {Dataset.open(url).sequences} sequences and is left as it is."
    except NotFoundError:
        pass
    sizes = dict(zip(problem.sizes, ranges, strict=True))
    metadata: dict[str, Any] = {"problem": problem.describe(), "sizes": sizes}
    if easier:
        metadata["easier"] = [
            {"sequences": some, **dict(zip(problem.sizes, theirs, strict=True))} for some, theirs in easier
        ]
    with DatasetWriter(url, problem.schema, metadata) as writer:
        for number, (some, theirs) in enumerate(easier, 1):
            for example in problem.examples(some, theirs, (seed, number)):
                writer.write(example)
        for example in problem.examples(count, ranges, seed):
            writer.write(example)
    first = f"{sum(some for some, _ in easier)} easier ones, then " if easier else ""
    said = ", ".join(
        f"{low} to {high} {name}" if low != high else f"{low} {name}" for name, (low, high) in sizes.items()
    )
    return f"{url}: {first}{count} sequences of {said}"
