"""What the routes work with."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from recurra.errors import RequestError
from recurra.serving.service import Service
from recurra.serving.session_desks import SessionDesks


@dataclass(frozen=True)
class Parts:
    """Handed to every group of routes."""

    service: Service
    deployed: Callable[[], list[dict[str, Any]]]
    """What `GET /v1/models` lists: the model, and the candidate while it is tried out."""
    sessions: SessionDesks | None
    """None where the model cannot step, or no store was given."""
    fleet_metrics: Callable[[], Awaitable[str]]
    """Prometheus' text format of the whole fleet."""
    secret: bytes = b""
    """Known to the replicas of a service alone: its bearer key, if it has one."""

    def sessions_or_404(self) -> SessionDesks:
        """The sessions.

        Raises:
            RequestError: 404 when there are none.
        """
        if self.sessions is not None:
            return self.sessions
        name = self.service.served.name
        raise RequestError(
            f"'{name}' has no sessions here: it reads each sequence as a whole (bidirectional or attention), or the "
            f"service has no store to keep them in. Use POST /v1/predict/{name}.",
            status=404,
            code="no_sessions",
        )
