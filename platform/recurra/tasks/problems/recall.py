"""Section 4.3, associative recall: after several items one of them is shown again, and the next one is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from recurra.errors import ConfigError, RequestError
from recurra.tasks.problems.base import LONGEST, Bits, Example, Inputs, Problem, answered, vectors_field, vectors_schema


@dataclass(frozen=True)
class AssociativeRecall(Problem):
    """Items are `item` vectors each, with a delimiter before each; then a query delimiter, the query, a query delimiter,
    and nothing to see while the item that came after the queried one is said.

    Channels behind the bits: delimiter of items, delimiter of queries.
    """

    name: ClassVar[str] = "associative_recall"
    sizes: ClassVar[tuple[str, ...]] = ("items",)

    width: int = 6
    item: int = 3
    """Vectors of an item (V)."""

    @property
    def input_size(self) -> int:
        return self.width + 2

    def draw(self, generator: np.random.Generator, *sizes: int) -> Example:
        (items,) = sizes
        bits_IVW = generator.integers(0, 2, (items, self.item, self.width))
        return self.of(bits_IVW, int(generator.integers(items - 1)))

    def draw_alike(self, generator: np.random.Generator, items: int, vectors: int = 8) -> Example:
        """A problem whose items are made of few different vectors, at most `vectors`, so that many of them begin or end alike.
        No two items are equal.

        Raises:
            ConfigError: There are not so many different items.
        """
        few_PW = np.unique(generator.integers(0, 2, (vectors, self.width)), axis=0)
        different = len(few_PW) ** self.item
        if different < items:
            raise ConfigError(
                f"{len(few_PW)} different vectors make {different} items of {self.item}, and {items} were asked for. "
                "Ask for fewer items, or for more vectors, of more bits."
            )
        chosen_I = generator.choice(different, items, replace=False)
        places_VI = np.unravel_index(chosen_I, (len(few_PW),) * self.item)
        return self.of(few_PW[np.stack(places_VI, 1)], int(generator.integers(items - 1)))

    def of(self, bits_IVW: Bits, queried: int) -> Example:
        """The problem of these items; `queried` is the one that is shown again, any but the last."""
        return answered(self._inputs(bits_IVW, bits_IVW[queried]), bits_IVW[queried + 1])

    def pose(self, fields: Mapping[str, Any]) -> tuple[Inputs, int]:
        bits_NW = vectors_field(fields, "bits", self.width)
        query_VW = vectors_field(fields, "query", self.width)
        if len(bits_NW) % self.item or len(bits_NW) < 2 * self.item:
            raise RequestError(
                f"'bits' has {len(bits_NW)} vectors. Send two items or more of {self.item} vectors each.",
                code="not_items",
                param="bits",
            )
        if len(query_VW) != self.item:
            raise RequestError(
                f"'query' has {len(query_VW)} vectors. Send the {self.item} of one item.",
                code="not_an_item",
                param="query",
            )
        inputs = self._inputs(bits_NW.reshape(-1, self.item, self.width), query_VW)
        return inputs, len(inputs) - self.item

    @property
    def fields(self) -> dict[str, Any]:
        one = {"minItems": self.item, "maxItems": self.item}
        return {
            "bits": {**vectors_schema(self.width), "minItems": 2 * self.item, "maxItems": LONGEST},
            "query": {**vectors_schema(self.width), **one},
        }

    @property
    def example(self) -> dict[str, Any]:
        item = [[0] * self.width] * self.item
        return {"bits": item + [[1] * self.width] * self.item, "query": item}

    def _inputs(self, bits_IVW: Bits, query_VW: Bits) -> Inputs:
        items, length = len(bits_IVW), self.item
        inputs = np.zeros((items * (length + 1) + length + 2 + length, self.input_size), np.float32)
        shown = inputs[: items * (length + 1)].reshape(items, length + 1, -1)
        shown[:, 0, self.width] = 1
        shown[:, 1:, : self.width] = bits_IVW
        asked = inputs[items * (length + 1) :]
        asked[[0, length + 1], self.width + 1] = 1
        asked[1 : length + 1, : self.width] = query_VW
        return inputs
