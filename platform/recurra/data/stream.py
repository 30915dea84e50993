"""The common shape of the modes: a stream is cut into chunks, whose data is fetched together and then handed out in batches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from recurra.data.batch import Batch
from recurra.data.columns import Rows
from recurra.data.order import BlockOrder
from recurra.data.plan import Position


class Assembled(Protocol):
    """Consecutive batches of one rank, with all their data in memory."""

    batches: int
    real: list[int]
    """Real steps of this rank's rows in each batch."""

    def behind(self, index: int) -> Position:
        """The position behind batch `index`."""
        ...

    def batch(self, index: int, position: dict[str, int | str]) -> Batch:
        """Make batch `index`, which carries this saved position; cheap, since the consumer's thread does it."""
        ...


class Chunk(Protocol):
    """Consecutive batches whose data is fetched together."""

    order: BlockOrder
    epoch: int
    places: NDArray[np.int64]
    """Places of the epoch's order that this rank needs, ascending."""

    def assemble(self, rows: Mapping[int, Rows]) -> Assembled:
        """Gather what the rank needs out of its places; runs in the background."""
        ...


class Stream(Protocol):
    """One rank's batches of a dataset under one set of options."""

    def batches(self, epoch: int) -> int:
        """Global batches of the epoch, the same for all ranks."""
        ...

    def chunks(self, position: Position) -> Iterator[Chunk]:
        """From a position to the end of its epoch."""
        ...

    def prepare(self, chunk: Chunk, place: int, rows: Rows) -> Rows:
        """What is done with a block once, right after it was fetched; runs in the reader's threads."""
        ...

    def uses(self, epoch: int) -> NDArray[np.float64]:
        """[blocks] when this rank first needs each block in an epoch: epoch + share of it that is over; infinite = never."""
        ...
