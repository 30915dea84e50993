"""How a model of an algorithmic problem does at given sizes, those beyond its training above all."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from recurra.data.batch import Batch
from recurra.models.sequence import SequenceModel
from recurra.tasks.algorithmic import AlgorithmicTask
from recurra.tasks.problems.base import Example
from recurra.training.evaluation import evaluate
from recurra.training.ranks import SingleRank

_STEPS_AT_ONCE = 8192
"""Time steps of a batch: more rows of short sequences, fewer of long ones."""


def metrics_at(
    task: AlgorithmicTask, model: SequenceModel, sizes: Sequence[int], *, sequences: int, seed: int
) -> dict[str, float]:
    """Metrics over fresh random problems of one size.

    Args:
        task: Knows the problem.
        model: Left in eval mode.
        sizes: As `Problem.draw` takes them, such as the vectors of copy, or vectors and repeats of repeat copy.
        sequences: How many problems.
        seed: Of the problems; equal seeds give equal ones, so that models can be compared.
    """
    examples = list(task.problem.examples(sequences, [(size, size) for size in sizes], seed))
    rows = max(1, _STEPS_AT_ONCE // len(examples[0]["counted"]))
    batches = (_batch_of(examples[start : start + rows]) for start in range(0, sequences, rows))
    return evaluate(task, model, batches, SingleRank()).metrics


def _batch_of(examples: Sequence[Example]) -> Batch:
    """Sequences of one length as a batch."""
    rows, steps = len(examples), len(examples[0]["counted"])
    reset_BT = np.zeros((rows, steps), np.bool_)
    reset_BT[:, 0] = True
    return Batch(
        columns={name: np.stack([example[name] for example in examples]) for name in examples[0]},
        lengths=np.full(rows, steps, np.int64),
        reset=reset_BT,
        ids=np.arange(rows),
        weight=np.ones(rows, np.float32),
        lanes=None,
        epoch=0,
        step_in_epoch=0,
        global_tokens=rows * steps,
        position={},
    )
