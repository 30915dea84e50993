"""The one retry loop: until a deadline, with full jitter, and reads go on from the byte that they reached."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from recurra.errors import StorageError, UnreachableError

T = TypeVar("T")


class TransientError(Exception):
    """One attempt failed in a way that another one may cure. Never leaves the retry loop.

    Args:
        why: What was seen, for the message once the deadline has passed.
        answered: Whether the store itself answered, so that it is known to be there.
        retry_after_s: Seconds that the store asked us to wait, if it did.
    """

    def __init__(self, why: str, *, answered: bool = False, retry_after_s: float = 0.0) -> None:
        super().__init__(why)
        self.answered = answered
        self.retry_after_s = retry_after_s


@dataclass(frozen=True)
class RetryPolicy:
    """How long to go on. No attempt starts after the deadline."""

    deadline_s: float = 60.0
    """Seconds since the start of the call, or since a read last made progress."""
    first_contact_s: float = 10.0
    """The same while the store has never answered: a wrong address should not take a minute to be told."""
    first_pause_s: float = 0.1
    longest_pause_s: float = 5.0
    """Pauses are uniform in [0, p], where p doubles from the first to the longest."""
    progress_bytes: int = 64 << 10
    """Bytes that count as progress; fewer do not move the deadline."""
    connect_timeout_s: float = 5.0
    """Longest wait for one connection."""
    read_timeout_s: float = 20.0
    """Longest silence within one attempt. Losers of a contended create were seen to wait 9 s (SeaweedFS)."""


DEFAULT_POLICY = RetryPolicy()


class Retry:
    """Runs attempts. One for each client, since it remembers whether the store has ever answered; thread-safe."""

    def __init__(
        self,
        policy: RetryPolicy,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self.policy = policy
        self._clock = clock
        self._sleep = sleep
        self._chance = chance
        self._answered = False

    def run(self, attempt: Callable[[], T], what: str, reached: Callable[[], int] = lambda: 0) -> T:
        """Call `attempt` until it returns, or raises anything but `TransientError`.

        Args:
            attempt: One try; it keeps what it has got, so that the next one can go on from there.
            what: Names the work in messages, such as "reading s3://bucket/key".
            reached: Bytes that all attempts together have got.

        Raises:
            UnreachableError: The deadline has passed; the message tells the last failure.
        """
        start_s, mark, failures, tries = self._clock(), reached(), 0, 0
        while True:
            tries += 1
            try:
                result = attempt()
            except TransientError as exc:
                self._answered |= exc.answered
                if reached() >= mark + self.policy.progress_bytes:
                    start_s, mark, failures = self._clock(), reached(), 0
                pause_s = self._pause_s(failures, exc.retry_after_s)
                limit_s = self.policy.deadline_s if self._answered else self.policy.first_contact_s
                if self._clock() + pause_s - start_s >= limit_s:
                    self._answered = False
                    raise UnreachableError(self._message(what, exc, tries, limit_s)) from exc
                failures += 1
                self._sleep(pause_s)
            except StorageError:
                self._answered = True
                raise
            else:
                self._answered = True
                return result

    def _pause_s(self, failures: int, retry_after_s: float) -> float:
        longest_s = min(self.policy.longest_pause_s, self.policy.first_pause_s * 2.0 ** min(failures, 32))
        return max(retry_after_s, self._chance() * longest_s)

    @staticmethod
    def _message(what: str, exc: TransientError, tries: int, limit_s: float) -> str:
        times = "once" if tries == 1 else f"{tries} times"
        return (
            f"Gave up {what} after {limit_s:.0f} s (tried {times}): {exc}. "
            "Check that the store is running and that AWS_ENDPOINT_URL and the network lead to it."
        )
