"""What the pipeline hands to a training step: the rows of one rank of one global batch, as numpy arrays."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Batch:
    """Rows of one rank. The padded length S and the rows of all ranks together do not depend on the number of ranks.

    Buckets: a row is a whole sequence, S is the longest of the *global* batch.
    Lanes: a row is the next window of a lane, S = window + lookahead; lane i of batch t + 1 goes on at the step
    where the window of lane i of batch t ended (its lookahead steps come again). The window may differ from batch to
    batch (the last of an epoch is what is left): it is S - lookahead, the same in all rows.
    Packed: rows as in lanes, but each starts anew at its first step.
    Arrays are the consumer's to keep; `reset` and sequence columns may be views that other batches share: do not write.
    """

    columns: dict[str, NDArray[np.generic]]
    """Time columns [B, S] or [B, S, F]; sequence columns [B] or [B, F] (buckets only; strings as object arrays)."""
    lengths: NDArray[np.int64]
    """[B] real steps in each row, lookahead included, 0 for a filler row; what follows in a row is zero."""
    reset: NDArray[np.bool_]
    """[B, S] True at the step where a sequence starts: state is set to its initial value just before it."""
    ids: NDArray[np.int64]
    """[B] sequence ids (buckets) or the sequence that the window starts in (lanes, packed); -1 for a filler row."""
    weight: NDArray[np.float32]
    """[B] 1, or the sequence's own weight; 0 for a filler row."""
    lanes: NDArray[np.int64] | None
    """[B] global lane numbers in lanes mode, which carried state is kept by; None otherwise. A rank has the same lanes
    in every batch; -1 marks a row that only makes the ranks equal and has no state worth keeping."""
    epoch: int
    step_in_epoch: int
    """0-based index of the global batch in its epoch."""
    global_tokens: int
    """Real time steps in the whole global batch, over all ranks (lanes: without lookahead)."""
    position: dict[str, int | str]
    """Pipeline state after this batch: what a checkpoint stores. Under 200 bytes as JSON, the same on all ranks."""
