"""Section 4.4, dynamic n-grams: guess the next bit of a source whose table is new in every sequence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from recurra.data.schema import Column, SequenceSchema
from recurra.errors import RequestError
from recurra.tasks.instances import number_field
from recurra.tasks.problems.base import LONGEST, Bits, Example, Inputs, Problem


@dataclass(frozen=True)
class DynamicNgrams(Problem):
    """One bit in, the next one out. The table holds the probability of a 1 after each `context` bits, drawn from
    Beta(1/2, 1/2); the first `context` bits are fair.

    Every prediction is judged: for n bits that is n - 1 of them.
    """

    name: ClassVar[str] = "dynamic_ngrams"
    sizes: ClassVar[tuple[str, ...]] = ("bits",)

    width: int = 1
    context: int = 5
    """Bits that the next one depends on; the paper's 6-grams have 5."""

    @property
    def input_size(self) -> int:
        return self.width

    @property
    def schema(self) -> SequenceSchema:
        """Also `optimum`, what the best possible predictor pays for the sequence, in bits."""
        return SequenceSchema((*super().schema.columns, Column("optimum", "float32", axis="sequence")))

    def draw(self, generator: np.random.Generator, *sizes: int) -> Example:
        (count,) = sizes
        table = generator.beta(0.5, 0.5, 2**self.context)
        bits = generator.integers(0, 2, count)
        chances, place = generator.random(count), _place(bits[: self.context])
        for step in range(self.context, count):
            bits[step] = chances[step] < table[place]
            place = (2 * place + int(bits[step])) % len(table)
        return self.of(bits)

    def of(self, bits_N: Bits) -> Example:
        """The problem of these bits, N - 1 steps."""
        return {
            "inputs": bits_N[:-1, None].astype(np.float32),
            "targets": bits_N[1:, None].astype(np.uint8),
            "counted": np.ones(len(bits_N) - 1, np.uint8),
            "optimum": np.asarray(-np.log2(self.optimal(bits_N)[1:]).sum(), np.float32),
        }

    def optimal(self, bits_N: Bits) -> NDArray[np.float64]:
        """[N] probability that the optimal estimator gives to each bit that came: (N1 + 1/2) / (N1 + N0 + 1) after the
        N1 ones and N0 zeros that followed the same context before (Murphy 2012; section 4.4); 1/2 without a context."""
        given = np.full(len(bits_N), 0.5)
        seen = np.full((2**self.context, 2), 0.5)
        place = _place(bits_N[: self.context])
        for step in range(self.context, len(bits_N)):
            bit = int(bits_N[step])
            given[step] = seen[place, bit] / seen[place].sum()
            seen[place, bit] += 1
            place = (2 * place + bit) % len(seen)
        return given

    def pose(self, fields: Mapping[str, Any]) -> tuple[Inputs, int]:
        bits = number_field(fields, "bits")
        if not 1 <= len(bits) <= LONGEST:
            raise RequestError(
                f"'bits' has {len(bits)} bits. Send 1 to {LONGEST}.",
                status=413 if len(bits) else 422,
                code="too_long" if len(bits) else "empty",
                param="bits",
            )
        if not np.isin(bits, (0, 1)).all():
            wrong = bits[~np.isin(bits, (0, 1))][0]
            raise RequestError(f"'bits' holds {wrong:g}. Send 0 and 1 alone.", code="not_a_bit", param="bits")
        return bits[:, None].astype(np.float32), 0

    @property
    def fields(self) -> dict[str, Any]:
        bit = {"type": "integer", "minimum": 0, "maximum": 1}
        return {"bits": {"type": "array", "items": bit, "minItems": 1, "maxItems": LONGEST}}

    @property
    def example(self) -> dict[str, Any]:
        return {"bits": [0, 1, 1, 0]}


def _place(bits: Bits) -> int:
    """Row of the table after these bits: the first is the highest digit."""
    place = 0
    for bit in bits:
        place = 2 * place + int(bit)
    return place
