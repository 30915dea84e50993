"""Sums over ranks that run while backward still computes: the gradients in buckets, each sent once it is filled."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from recurra.training.ranks import Ranks

BUCKET_BYTES = 1 << 20
"""A bucket is closed by the parameter with which it has these. DistributedDataParallel's 25 MiB would hold a whole recurrent
model, whose layers come one after the other; below this a message costs more for being one than for its bytes."""


class OverlappedSum:
    """Sums a buffer over ranks in place, bucket by bucket.

    Buckets and their order are fixed, and each rank sends all of them in each update, filled or zero: a rank whose rows
    use other parameters than its neighbours', or that has no rows, waits for nobody and keeps nobody waiting.

    Args:
        buffer: The gradients of `parameters`, and behind them whatever is known by the time `finish` is called.
        parameters: In the order in which backward is expected to have done with them.
        ranks: Those that add up.
    """

    def __init__(self, buffer: Tensor, parameters: Sequence[Tensor], ranks: Ranks) -> None:
        self._ranks = ranks
        self._sizes = [0]
        """Parameters in each bucket."""
        widths = [0]
        quick = ranks.prepare_sums(buffer)
        for parameter in [] if quick else parameters:
            if widths[-1] * buffer.itemsize >= BUCKET_BYTES:
                self._sizes.append(0)
                widths.append(0)
            if ranks.size > 1:
                hook = partial(self._filled, len(widths) - 1)
                parameter.register_post_accumulate_grad_hook(hook)  # type: ignore[no-untyped-call]
            self._sizes[-1] += 1
            widths[-1] += parameter.numel()
        widths[-1] += len(buffer) - sum(widths)
        self._buckets = torch.split(buffer, widths)
        self._missing: list[int] = []
        """Parameters of each bucket that backward is not done with; empty while none is to be sent."""
        self._waits: list[Callable[[], None]] = []
        """For each bucket that was sent what waits for its sum."""

    @property
    def sent(self) -> int:
        """Buckets of this update that are sent, so far."""
        return len(self._waits)

    def expect_last(self) -> None:
        """The backward pass that comes next is the last of the update: what it is done with may be sent."""
        self._missing = list(self._sizes)

    def finish(self) -> None:
        """Send what is left and wait for all sums; each rank calls it once an update."""
        self._missing = []
        while self.sent < len(self._buckets):
            self._send()
        for wait in self._waits:
            wait()
        self._waits = []

    def _filled(self, bucket: int, parameter: Tensor) -> None:
        if not self._missing:
            return
        self._missing[bucket] -= 1
        # In order, as the other ranks do; the last bucket has what comes behind the gradients, too.
        while self.sent < len(self._buckets) - 1 and not self._missing[self.sent]:
            self._send()

    def _send(self) -> None:
        self._waits.append(self._ranks.begin_sum(self._buckets[self.sent]))
