"""The verdict on a candidate: what it did lately, beside what the stable bundle did at the same replica meanwhile."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from recurra.serving.config import GuardConfig


@dataclass
class _Window:
    """Requests of one bundle, oldest first: when, after how many seconds (None = not timed), whether it failed."""

    requests: deque[tuple[float, float | None, bool]] = field(default_factory=deque)
    failures: int = 0

    def add(self, now_s: float, seconds: float | None, failed: bool) -> None:
        self.requests.append((now_s, seconds, failed))
        self.failures += failed

    def forget(self, before_s: float) -> None:
        while self.requests and self.requests[0][0] < before_s:
            self.failures -= self.requests.popleft()[2]

    @property
    def error_rate(self) -> float:
        return self.failures / len(self.requests) if self.requests else 0.0

    @property
    def p95_s(self) -> float:
        """95 of 100 timed requests took at most so long; 0 without any."""
        times = sorted(seconds for _, seconds, _ in self.requests if seconds is not None)
        return times[-(-95 * len(times) // 100) - 1] if times else 0.0


class CanaryGuard:
    """Hears of every request of a replica, on its event loop.

    The replica judges by what it served itself: both bundles ran on the same machine at the same time, which no sum over
    the fleet can say, and nobody has to be asked. One replica's verdict counts for all of them (see `trial.py`).

    Args:
        config: Limits.
        candidate: Digest.
        stable: Digest.
        clock: Seconds, monotonic.
    """

    def __init__(
        self, config: GuardConfig, candidate: str, stable: str, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._config = config
        self._windows = {candidate: _Window(), stable: _Window()}
        self._candidate = self._windows[candidate]
        self._stable = self._windows[stable]
        self._clock = clock

    def hear(self, digest: str, seconds: float | None, failed: bool) -> None:
        """Take note of a request.

        Args:
            digest: The bundle that it went to.
            seconds: Until its answer; None for streams, and for requests that failed.
            failed: Whether the server failed it.
        """
        window = self._windows.get(digest)
        if window is not None:
            now_s = self._clock()
            window.add(now_s, seconds, failed)
            window.forget(now_s - self._config.window_s)

    def breach(self) -> str | None:
        """Why the candidate must go; None while there is no reason."""
        before_s = self._clock() - self._config.window_s
        for window in self._windows.values():
            window.forget(before_s)
        candidate, stable, limits = self._candidate, self._stable, self._config
        count = len(candidate.requests)
        if count < limits.min_requests:
            return None
        ours, theirs = candidate.error_rate, stable.error_rate
        if ours > limits.error_rate and ours > theirs:
            return (
                f"guard: {candidate.failures} of {count} requests failed ({ours:.1%}, limit {limits.error_rate:.1%}, "
                f"stable {theirs:.1%})"
            )
        slow, usual = candidate.p95_s, stable.p95_s
        if limits.p95_ms is not None and slow * 1e3 > limits.p95_ms and slow > usual:
            return (
                f"guard: p95 of {count} requests is {slow * 1e3:.0f} ms (limit {limits.p95_ms:g} ms, "
                f"stable {usual * 1e3:.0f} ms)"
            )
        return None
