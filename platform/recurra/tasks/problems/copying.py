"""Sections 4.1 and 4.2: say vectors again, once or as often as asked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from recurra.errors import RequestError
from recurra.tasks.instances import whole_number
from recurra.tasks.problems.base import LONGEST, Bits, Example, Inputs, Problem, answered, vectors_field, vectors_schema


@dataclass(frozen=True)
class Copy(Problem):
    """Vectors, a delimiter on a channel of its own, then nothing to see while the vectors are said again, in order."""

    name: ClassVar[str] = "copy"
    sizes: ClassVar[tuple[str, ...]] = ("vectors",)

    @property
    def input_size(self) -> int:
        return self.width + 1

    def draw(self, generator: np.random.Generator, *sizes: int) -> Example:
        (vectors,) = sizes
        return self.of(generator.integers(0, 2, (vectors, self.width)))

    def of(self, bits_NW: Bits) -> Example:
        """The problem of these vectors, 2N + 1 steps."""
        return answered(self._inputs(bits_NW), bits_NW)

    def pose(self, fields: Mapping[str, Any]) -> tuple[Inputs, int]:
        bits_NW = vectors_field(fields, "bits", self.width)
        return self._inputs(bits_NW), len(bits_NW) + 1

    @property
    def fields(self) -> dict[str, Any]:
        return {"bits": vectors_schema(self.width)}

    @property
    def example(self) -> dict[str, Any]:
        return {"bits": [[0] * self.width]}

    def _inputs(self, bits_NW: Bits) -> Inputs:
        return _then_silence(bits_NW, 1.0, len(bits_NW))


@dataclass(frozen=True)
class RepeatCopy(Problem):
    """Vectors, then how often on a channel of its own, then nothing to see while they are said so often; in the end a
    step whose last bit, the end marker, is 1 and whose other bits are 0.

    The number of repeats is brought to mean 0 and variance 1 over `fewest` to `most`, as in the paper: others can still
    be asked for, and then lie outside of what the network saw.
    """

    name: ClassVar[str] = "repeat_copy"
    sizes: ClassVar[tuple[str, ...]] = ("vectors", "repeats")

    fewest: int = 1
    """Repeats in training, drawn evenly from here ..."""
    most: int = 10
    """... to here."""

    @property
    def input_size(self) -> int:
        return self.width + 1

    @property
    def output_size(self) -> int:
        return self.width + 1

    def draw(self, generator: np.random.Generator, *sizes: int) -> Example:
        vectors, repeats = sizes
        return self.of(generator.integers(0, 2, (vectors, self.width)), repeats)

    def draw_alike(self, generator: np.random.Generator, vectors: int, repeats: int, kinds: int = 8) -> Example:
        """A problem with at most `kinds` different vectors, and often fewer. One of them is all zeros, as a step of silence is."""
        few_PW = generator.integers(0, 2, (int(generator.integers(2, kinds + 1)), self.width))
        few_PW[0] = 0
        return self.of(few_PW[generator.integers(0, len(few_PW), vectors)], repeats)

    def of(self, bits_NW: Bits, repeats: int) -> Example:
        """The problem of these vectors, N + 1 + N * repeats + 1 steps."""
        answer = np.zeros((len(bits_NW) * repeats + 1, self.output_size), np.uint8)
        answer[:-1, : self.width] = np.tile(bits_NW, (repeats, 1))
        answer[-1, -1] = 1
        return answered(self._inputs(bits_NW, repeats), answer)

    def normalised(self, repeats: int) -> float:
        """What stands on the channel of the count."""
        mean, variance = (self.fewest + self.most) / 2, ((self.most - self.fewest + 1) ** 2 - 1) / 12
        return float((repeats - mean) / max(variance, 1e-12) ** 0.5)

    def pose(self, fields: Mapping[str, Any]) -> tuple[Inputs, int]:
        bits_NW = vectors_field(fields, "bits", self.width)
        repeats = whole_number(fields, "repeats", 1, LONGEST, default=1)
        if len(bits_NW) * repeats > LONGEST:
            raise RequestError(
                f"'repeats' is {repeats}, which makes {len(bits_NW) * repeats} steps of {len(bits_NW)}. "
                f"Send at most {LONGEST // len(bits_NW)}.",
                status=413,
                code="too_long",
                param="repeats",
            )
        return self._inputs(bits_NW, repeats), len(bits_NW) + 1

    @property
    def fields(self) -> dict[str, Any]:
        return {
            "bits": vectors_schema(self.width),
            "repeats": {"type": "integer", "minimum": 1, "maximum": LONGEST},
        }

    @property
    def example(self) -> dict[str, Any]:
        return {"bits": [[0] * self.width], "repeats": 2}

    def _inputs(self, bits_NW: Bits, repeats: int) -> Inputs:
        return _then_silence(bits_NW, self.normalised(repeats), len(bits_NW) * repeats + 1)


def _then_silence(bits_NW: Bits, sign: float, silence: int) -> Inputs:
    """The vectors, one step with `sign` on the last channel, and steps of nothing."""
    count, width = bits_NW.shape
    inputs = np.zeros((count + 1 + silence, width + 1), np.float32)
    inputs[:count, :width] = bits_NW
    inputs[count, width] = sign
    return inputs
