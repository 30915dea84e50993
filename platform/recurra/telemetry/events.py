"""Structured events: one JSON object a line, with what identifies the process bound once."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from threading import Lock
from typing import Any, TextIO

from recurra.config.env import secret_values

REDACTED = "[redacted]"
_SECRET_NAMES = ("secret", "password", "authorization", "credential", "api_key", "access_key", "auth_token")


class EventLog:
    """Writes events to a stream; `bind` gives a log of the same stream that adds more fields to each event.

        log = EventLog(run_id="sms", rank=0)
        log.emit("checkpoint_saved", step=200, seconds=0.8)

    Values of fields whose name speaks of a secret, and this process's own keys wherever they turn up, are replaced.
    May be used from any thread: a line is written whole.

    Args:
        stream: Where lines go; standard error of the moment when None, which Ray and Kubernetes both collect.
        clock: Seconds since 1970.
        bound: Fields of every event, such as `run_id`, `rank`, `step`.
    """

    def __init__(self, stream: TextIO | None = None, clock: Callable[[], float] = time.time, **bound: Any) -> None:
        self._stream = stream
        self._clock = clock
        self._bound = bound
        self._lock = Lock()
        self._secrets = secret_values()

    def bind(self, **fields: Any) -> EventLog:
        """A log that adds `fields` to what this one adds."""
        child = EventLog(self._stream, self._clock, **{**self._bound, **fields})
        child._lock = self._lock
        return child

    def emit(self, event: str, **fields: Any) -> None:
        """Write one event; values that JSON does not know are written as text."""
        moment = datetime.fromtimestamp(self._clock(), UTC).isoformat(timespec="milliseconds")
        record = {"time": moment, "event": event, **self._bound, **fields}
        line = json.dumps({name: _clean(name, value, self._secrets) for name, value in record.items()}, default=str)
        with self._lock:
            stream = self._stream or sys.stderr
            stream.write(line + "\n")
            stream.flush()


def _clean(name: str, value: Any, secrets: Iterable[str]) -> Any:
    if isinstance(value, dict):
        return {str(key): _clean(str(key), inner, secrets) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_clean(name, inner, secrets) for inner in value]
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if any(word in name.lower() for word in _SECRET_NAMES):
        return REDACTED
    text = str(value)
    for secret in secrets:
        text = text.replace(secret, REDACTED)
    return text
