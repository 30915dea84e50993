"""Problems that need memory rather than data (Graves, Wayne, Danihelka 2014, arXiv 1410.5401, section 4). NumPy alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recurra.data.schema import Column, SequenceSchema


def copy_schema(width: int) -> SequenceSchema:
    """Columns of the copy problem with vectors of `width` bits."""
    return SequenceSchema(
        (
            Column("inputs", "float32", width=width + 1),
            Column("targets", "uint8", width=width),
            Column("counted", "uint8"),
        )
    )


def copy_inputs(bits_NW: NDArray[np.integer[Any]]) -> NDArray[np.float32]:
    """[2N + 1, W + 1] what the network sees: the vectors, a delimiter on a channel of its own, then nothing."""
    count, width = bits_NW.shape
    inputs = np.zeros((2 * count + 1, width + 1), np.float32)
    inputs[:count, :width] = bits_NW
    inputs[count, width] = 1
    return inputs


def copy_example(bits_NW: NDArray[np.integer[Any]]) -> dict[str, NDArray[np.generic]]:
    """One sequence: the vectors are to be said again, in order, in the steps behind the delimiter."""
    count, width = bits_NW.shape
    targets = np.zeros((2 * count + 1, width), np.uint8)
    targets[count + 1 :] = bits_NW
    counted = np.zeros(2 * count + 1, np.uint8)
    counted[count + 1 :] = 1
    return {"inputs": copy_inputs(bits_NW), "targets": targets, "counted": counted}


def copy_examples(
    count: int, *, width: int, shortest: int, longest: int, seed: int
) -> Iterator[dict[str, NDArray[np.generic]]]:
    """Random vectors, their number drawn evenly from `shortest` to `longest`; equal seeds give equal sequences."""
    generator = np.random.default_rng(seed)
    for _ in range(count):
        length = int(generator.integers(shortest, longest + 1))
        yield copy_example(generator.integers(0, 2, (length, width)))
