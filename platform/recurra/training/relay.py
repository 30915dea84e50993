"""Between the driver and rank 0, as an actor: events one way, and the outcome. Imports next to nothing, so that it
starts fast."""

from __future__ import annotations

from typing import Any

from recurra.errors import RecurraError
from recurra.training.result import RunResult


class Relay:
    """Lives as long as one launch."""

    def __init__(self) -> None:
        self._events: list[dict[str, Any]] = []
        self._workers: int | None = None
        self._preempted = False
        self._outcome: RunResult | RecurraError | None = None

    def begin(self, workers: int) -> str | None:
        """Note an attempt with that many workers; gives why the one before it ended, None when it is the first."""
        before, self._workers = self._workers, workers
        preempted, self._preempted = self._preempted, False
        if before is None:
            return None
        return "preemption" if preempted else "failure" if before == workers else "resize"

    def preempt(self) -> None:
        """Note that a node of the current attempt is about to go."""
        self._preempted = True

    def tell(self, event: dict[str, Any]) -> None:
        """Keep an event for the driver."""
        self._events.append(event)

    def drain(self) -> list[dict[str, Any]]:
        """The events since the last call."""
        events, self._events = self._events, []
        return events

    def end(self, outcome: RunResult | RecurraError) -> None:
        """Note how the run ended: its result, or an error that trying again does not cure."""
        self._outcome = outcome

    def outcome(self) -> RunResult | RecurraError | None:
        """What `end` was told; None before."""
        return self._outcome
