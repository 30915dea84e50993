"""Where the batches of a run come from."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from recurra.data.batch import Batch


class Batches(Protocol):
    """What the loop needs of a data pipeline: an endless or finite stream of batches that can go on anywhere."""

    def __iter__(self) -> Iterator[Batch]:
        """This rank's rows of the global batches; the same number on every rank."""
        ...

    def restore(self, position: dict[str, int | str]) -> None:
        """Go on behind the batch that had this position."""
        ...

    def batches_in_epoch(self, epoch: int) -> int:
        """Global batches of one pass over the data."""
        ...

    def close(self) -> None:
        """Stop reading."""
        ...

    @property
    def wait_s(self) -> float:
        """Seconds that the loop waited for batches so far."""
        ...
