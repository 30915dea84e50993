"""A problem that needs an algorithm rather than data: how examples are drawn, and how a client poses one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from recurra.data.schema import Column, SequenceSchema
from recurra.errors import RequestError
from recurra.tasks.instances import step_field

Bits = NDArray[np.integer[Any]]
Inputs = NDArray[np.float32]
Example = dict[str, NDArray[np.generic]]
"""`inputs` [T, D] float32; `targets` [T, K] uint8; `counted` [T] uint8, 1 where the answer is judged."""
Draw = Callable[..., Example]
"""A generator and one number for each size in, a random problem out."""

LONGEST = 4096
"""Vectors of a request, at most."""


@dataclass(frozen=True)
class Problem(ABC):
    """Its settings are part of every dataset and bundle. Concrete problems are final."""

    name: ClassVar[str]
    """The word in the job file."""
    sizes: ClassVar[tuple[str, ...]]
    """What a problem can be large in, in the order in which `draw` takes it."""

    width: int = 8
    """Bits of a vector (W)."""

    @property
    @abstractmethod
    def input_size(self) -> int:
        """Channels of a step (D)."""

    @property
    def output_size(self) -> int:
        """Bits of a step of the answer (K)."""
        return self.width

    @abstractmethod
    def draw(self, generator: np.random.Generator, *sizes: int) -> Example:
        """One random problem of these sizes with its answer."""

    @abstractmethod
    def pose(self, fields: Mapping[str, Any]) -> tuple[Inputs, int]:
        """What the network sees of a client's problem, and the step at which its answer begins.

        Raises:
            RequestError: The fields are no problem of this kind.
        """

    @property
    @abstractmethod
    def fields(self) -> dict[str, Any]:
        """JSON schema of what `pose` takes, all of it required."""

    @property
    @abstractmethod
    def example(self) -> dict[str, Any]:
        """What a client may send."""

    @property
    def schema(self) -> SequenceSchema:
        """Columns of a dataset of such problems."""
        return SequenceSchema(
            (
                Column("inputs", "float32", width=self.input_size),
                Column("targets", "uint8", width=self.output_size),
                Column("counted", "uint8"),
            )
        )

    def describe(self) -> dict[str, Any]:
        """Name and settings, as JSON."""
        return {"name": self.name, **asdict(self)}

    def examples(
        self, count: int, ranges: Sequence[tuple[int, int]], seed: int, draw: Draw | None = None
    ) -> Iterator[Example]:
        """Random problems; equal seeds give equal ones.

        Args:
            count: How many.
            ranges: Of each size, drawn evenly from it, both ends included.
            seed: Of all that is drawn.
            draw: In the place of the problem's own `draw`, such as one of harder problems.
        """
        generator, draw = np.random.default_rng(seed), draw or self.draw
        for _ in range(count):
            yield draw(generator, *(int(generator.integers(low, high + 1)) for low, high in ranges))


def answered(inputs: Inputs, answer: Bits) -> Example:
    """The example whose answer fills the last steps of `inputs`, and is judged there alone."""
    asked = len(inputs) - len(answer)
    targets = np.concatenate([np.zeros((asked, answer.shape[1]), np.uint8), answer.astype(np.uint8)])
    return {"inputs": inputs, "targets": targets, "counted": (np.arange(len(inputs)) >= asked).astype(np.uint8)}


def vectors_field(fields: Mapping[str, Any], name: str, width: int) -> NDArray[np.int64]:
    """[N, W] bits, N from 1 to `LONGEST`."""
    steps = step_field(fields, name, width)
    if not 1 <= len(steps) <= LONGEST:
        raise RequestError(
            f"'{name}' has {len(steps)} steps. Send 1 to {LONGEST}.",
            status=413 if len(steps) else 422,
            code="too_long" if len(steps) else "empty",
            param=name,
        )
    wrong = ~np.isin(steps, (0, 1))
    if wrong.any():
        raise RequestError(f"'{name}' holds {steps[wrong][0]:g}. Send 0 and 1 alone.", code="not_a_bit", param=name)
    return steps.astype(np.int64)


def vectors_schema(width: int) -> dict[str, Any]:
    """JSON schema of a list of bit vectors."""
    bit = {"type": "integer", "minimum": 0, "maximum": 1}
    row = {"type": "array", "items": bit, "minItems": width, "maxItems": width}
    return {"type": "array", "items": row, "minItems": 1, "maxItems": LONGEST}
