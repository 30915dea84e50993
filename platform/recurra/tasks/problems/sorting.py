"""Section 4.5, priority sort: say the vectors again, those of the highest priority first."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from recurra.errors import RequestError
from recurra.tasks.instances import number_field
from recurra.tasks.problems.base import Bits, Example, Inputs, Problem, answered, vectors_field, vectors_schema


@dataclass(frozen=True)
class PrioritySort(Problem):
    """Vectors, each with a priority between -1 and 1 on a channel of its own; a delimiter on the last channel; then
    nothing to see while the `kept` share of the vectors with the highest priorities is said in falling order."""

    name: ClassVar[str] = "priority_sort"
    sizes: ClassVar[tuple[str, ...]] = ("vectors",)

    kept: float = 0.8
    """The paper's 16 of 20."""

    @property
    def input_size(self) -> int:
        return self.width + 2

    def draw(self, generator: np.random.Generator, *sizes: int) -> Example:
        (vectors,) = sizes
        return self.of(generator.integers(0, 2, (vectors, self.width)), generator.uniform(-1, 1, vectors))

    def of(self, bits_NW: Bits, priorities_N: NDArray[np.float64]) -> Example:
        """The problem of these vectors; of equal priorities, the first comes first."""
        order = np.argsort(-priorities_N, kind="stable")[: self.answers(len(bits_NW))]
        return answered(self._inputs(bits_NW, priorities_N), bits_NW[order])

    def answers(self, vectors: int) -> int:
        """Vectors of the answer to so many."""
        return max(1, round(self.kept * vectors))

    def pose(self, fields: Mapping[str, Any]) -> tuple[Inputs, int]:
        bits_NW = vectors_field(fields, "bits", self.width)
        priorities_N = number_field(fields, "priorities")
        if len(priorities_N) != len(bits_NW):
            raise RequestError(
                f"'priorities' has {len(priorities_N)} numbers for {len(bits_NW)} vectors. Send one for each vector.",
                code="wrong_length",
                param="priorities",
            )
        if np.abs(priorities_N).max() > 1:
            raise RequestError(
                f"'priorities' holds {priorities_N[np.abs(priorities_N).argmax()]:g}. Send numbers from -1 to 1.",
                code="out_of_range",
                param="priorities",
            )
        return self._inputs(bits_NW, priorities_N), len(bits_NW) + 1

    @property
    def fields(self) -> dict[str, Any]:
        bits = vectors_schema(self.width)
        priority = {"type": "number", "minimum": -1, "maximum": 1}
        return {"bits": bits, "priorities": {**bits, "items": priority}}

    @property
    def example(self) -> dict[str, Any]:
        return {"bits": [[0] * self.width, [1] * self.width], "priorities": [-0.5, 0.5]}

    def _inputs(self, bits_NW: Bits, priorities_N: NDArray[np.float64]) -> Inputs:
        count, width = bits_NW.shape
        inputs = np.zeros((count + 1 + self.answers(count), self.input_size), np.float32)
        inputs[:count, :width] = bits_NW
        inputs[:count, width] = priorities_N
        inputs[count, width + 1] = 1
        return inputs
