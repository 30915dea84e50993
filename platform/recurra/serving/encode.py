"""Which whole sequences, or chunks of them, go into one forward pass: near in length, within a budget of time steps."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator

from recurra.serving.work import Sequence

GROWTH = 1.25
"""Ratio between the bounds of neighbouring length buckets: at most a fifth of a batch is padding."""
FILL_ROWS = 16
"""Shorter sequences join a batch while it has fewer rows: up to there, on a CPU, a row costs less than the weights that
every step reads anyway."""


class EncodeQueue:
    """Sequences that wait for a forward pass, by bucket of the length of their next chunk.

    The bucket that holds the oldest one goes first, so nothing starves; a sequence whose chunk is done comes back
    at the end of the queue, so a long one cannot hold up the others.

    Args:
        chunk_steps: Longest chunk; None where the model must see a sequence whole.
    """

    def __init__(self, chunk_steps: int | None) -> None:
        self._chunk_steps = chunk_steps
        self._buckets: dict[int, deque[tuple[int, Sequence]]] = {}
        self._count = 0
        self._arrivals = 0

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Sequence]:
        return (sequence for waiting in self._buckets.values() for _, sequence in waiting)

    def add(self, sequence: Sequence) -> None:
        self._arrivals += 1
        self._count += 1
        self._buckets.setdefault(_bucket(self._chunk(sequence)), deque()).append((self._arrivals, sequence))

    def take(self, budget: int, longest: int | None = None) -> list[tuple[Sequence, int]]:
        """Sequences for one forward pass and the steps of each: padded steps up to `budget`, at least one sequence.

        Args:
            longest: Cut chunks to so many steps, where the model can be cut at all.
        """
        if not self._count:
            return []
        batch: list[tuple[Sequence, int]] = []
        width = 0
        oldest = min(self._buckets, key=lambda bucket: self._buckets[bucket][0][0])
        for bucket in sorted((b for b in self._buckets if b <= oldest), reverse=True):
            waiting = self._buckets[bucket]
            rows = math.inf if bucket == oldest else FILL_ROWS
            while waiting and len(batch) < rows:
                steps = self._chunk(waiting[0][1])
                if longest is not None and self._chunk_steps is not None:
                    steps = min(steps, longest)
                if batch and max(width, steps) * (len(batch) + 1) > budget:
                    break
                width = max(width, steps)
                batch.append((waiting.popleft()[1], steps))
            if not waiting:
                del self._buckets[bucket]
            if len(batch) >= FILL_ROWS:
                break
        self._count -= len(batch)
        return batch

    def remove(self, leaving: set[Sequence]) -> None:
        """Forget some sequences."""
        for bucket in list(self._buckets):
            stay = deque(item for item in self._buckets[bucket] if item[1] not in leaving)
            self._count -= len(self._buckets[bucket]) - len(stay)
            if stay:
                self._buckets[bucket] = stay
            else:
                del self._buckets[bucket]

    def _chunk(self, sequence: Sequence) -> int:
        return min(sequence.remaining, self._chunk_steps or sequence.remaining)


def _bucket(length: int) -> int:
    return math.ceil(math.log(length, GROWTH) - 1e-9) if length > 1 else 0
