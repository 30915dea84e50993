from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recurra.errors import NotFoundError, UnreachableError
from recurra.storage.retry import Retry, RetryPolicy, TransientError


class HandWoundClock:
    """Time passes only when somebody sleeps, or when the test says so."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.pauses_s: list[float] = []

    def __call__(self) -> float:
        return self.now_s

    def sleep(self, pause_s: float) -> None:
        self.pauses_s.append(pause_s)
        self.now_s += pause_s


def retry_with(clock: HandWoundClock, chance: float = 1.0, **policy: float) -> Retry:
    return Retry(RetryPolicy(**policy), clock=clock, sleep=clock.sleep, chance=lambda: chance)  # type: ignore[arg-type]


def failing(times: int, answered: bool = False, retry_after_s: float = 0.0):
    """An attempt that fails so many times and then returns how often it was called."""
    calls = 0

    def attempt() -> int:
        nonlocal calls
        calls += 1
        if calls <= times:
            raise TransientError("busy", answered=answered, retry_after_s=retry_after_s)
        return calls

    return attempt


def test_pauses_double_up_to_the_longest():
    """A store that is overloaded needs fewer requests, not more."""
    clock = HandWoundClock()

    assert retry_with(clock, first_pause_s=0.5, longest_pause_s=2.0).run(failing(4, answered=True), "reading") == 5
    assert clock.pauses_s == [0.5, 1.0, 2.0, 2.0]


@given(chance=st.floats(0, 1))
def test_jitter_covers_the_whole_pause(chance):
    """Workers that failed together must not come back together."""
    clock = HandWoundClock()

    retry_with(clock, chance, first_pause_s=2.0, longest_pause_s=2.0).run(failing(1, answered=True), "reading")

    assert clock.pauses_s == [2.0 * chance]


def test_the_store_decides_how_long_to_wait():
    """`Retry-After` knows more than our doubling."""
    clock = HandWoundClock()

    retry_with(clock).run(failing(1, answered=True, retry_after_s=7.0), "reading")

    assert clock.pauses_s == [7.0]


def test_after_the_deadline_the_message_names_the_work_and_the_last_failure():
    """It is all that the user sees of a minute of attempts."""
    clock = HandWoundClock()
    retry = retry_with(clock)

    with pytest.raises(UnreachableError, match=r"Gave up reading s3://b/k after 60 s \(tried \d+ times\): busy\."):
        retry.run(failing(1000, answered=True), "reading s3://b/k")
    assert clock.now_s <= 160.0


def test_a_store_that_never_answered_is_given_up_sooner():
    """A wrong address is told within ten seconds, a store that restarts is waited for."""
    clock = HandWoundClock()

    with pytest.raises(UnreachableError, match="after 10 s"):
        retry_with(clock).run(failing(1000), "reading")
    assert clock.now_s <= 110.0


def test_a_store_that_answered_once_is_waited_for():
    """The same connection failures mean a restart when the store was there a moment ago."""
    clock = HandWoundClock()
    retry = retry_with(clock)
    retry.run(failing(0), "reading")

    with pytest.raises(UnreachableError, match="after 60 s"):
        retry.run(failing(1000), "reading")
    with pytest.raises(UnreachableError, match="after 10 s"):
        retry.run(failing(1000), "reading")


def test_an_error_of_ours_ends_it_at_once():
    """Wrong credentials do not become right within a minute."""
    clock = HandWoundClock()

    def attempt() -> None:
        raise NotFoundError("no bucket")

    with pytest.raises(NotFoundError):
        retry_with(clock).run(attempt, "reading")
    assert clock.pauses_s == []


def test_progress_moves_the_deadline():
    """A large object over a slow line may take longer than the deadline, as long as bytes arrive."""
    clock = HandWoundClock()
    received = 0

    def attempt() -> int:
        nonlocal received
        clock.now_s += 50.0
        received += 65536
        if received < 65536 * 20:
            raise TransientError("cut", answered=True)
        return received

    assert retry_with(clock).run(attempt, "reading", lambda: received) == 65536 * 20
    assert clock.now_s > 1100.0


def test_a_trickle_is_no_progress():
    """One byte for each attempt would otherwise go on for days."""
    clock = HandWoundClock()
    received = 0

    def attempt() -> None:
        nonlocal received
        received += 1
        raise TransientError("cut", answered=True)

    with pytest.raises(UnreachableError):
        retry_with(clock).run(attempt, "reading", lambda: received)
