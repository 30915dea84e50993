"""A checkpoint between its decision and its commit: a thread that writes while the loop goes on."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from recurra.errors import RecurraError

T = TypeVar("T")


@dataclass(frozen=True)
class Saved:
    """A checkpoint that is durable, as rank 0 measured it."""

    step: int
    size_bytes: int
    """Of all files."""
    blocked_s: float
    """Seconds that the loop stood still: until the one before was durable, and while the state was copied."""
    durable_s: float
    """Seconds from the decision to the commit."""
    moment_s: float
    """Of the commit, in seconds since 1970."""


class InFlight:
    """Runs `work` in a thread of its own, from construction on; that thread does not keep a process alive.

    Args:
        work: Gives the checkpoint once it is durable, or raises.
        step: Names the thread.
    """

    def __init__(self, work: Callable[[], Saved], step: int) -> None:
        self._work = work
        self._saved: Saved | None = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name=f"checkpoint {step}", daemon=True)
        self._thread.start()

    @property
    def ended(self) -> bool:
        return not self._thread.is_alive()

    @property
    def failed(self) -> bool:
        return self._error is not None

    def wait(self, timeout_s: float | None = None) -> Saved | None:
        """The durable checkpoint; None when it is still on its way after `timeout_s` seconds. Raises what `work` raised."""
        self._thread.join(timeout_s)
        if self._error is not None:
            raise self._error
        return self._saved

    def _run(self) -> None:
        try:
            self._saved = self._work()
        except BaseException as exc:  # noqa: BLE001 - the thread that waits raises it
            self._error = exc


def tried(work: Callable[[], T]) -> T | Exception:
    """What `work` gives, or why it did not, in a form that can be sent to another rank."""
    try:
        return work()
    except RecurraError as exc:
        return exc
    except Exception as exc:  # noqa: BLE001 - whoever asked for it raises it
        return RuntimeError(f"{type(exc).__name__}: {exc}")
