"""Random problems as a committed dataset, which is how they come to the ordinary road."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from recurra.data.dataset import Dataset
from recurra.data.write import DatasetWriter
from recurra.errors import NotFoundError
from recurra.tasks.problems.base import Draw, Problem

Ranges = Sequence[tuple[int, int]]
"""Of each size of a problem: the smallest and the largest that are drawn."""


def write_problems(
    url: str, problem: Problem, count: int, ranges: Ranges, *, seed: int, draw: Draw | None = None
) -> str:
    """Write problems unless something is there already; gives a line that says what is there now.

    Args:
        url: `s3://bucket/prefix` or `file:///dir`.
        problem: Its description goes into the dataset, for the task.
        count: Sequences.
        ranges, draw: As `Problem.examples` takes them.
        seed: Another one for training than for evaluation.
    """
    try:
        return f"{url} already holds {Dataset.open(url).sequences} sequences and is left as it is."
    except NotFoundError:
        pass
    sizes = dict(zip(problem.sizes, ranges, strict=True))
    metadata: dict[str, Any] = {"problem": problem.describe(), "sizes": sizes}
    with DatasetWriter(url, problem.schema, metadata) as writer:
        for example in problem.examples(count, ranges, seed, draw):
            writer.write(example)
    said = ", ".join(
        f"{low} to {high} {name}" if low != high else f"{low} {name}" for name, (low, high) in sizes.items()
    )
    return f"{url}: {count} sequences of {said}"
