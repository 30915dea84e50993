"""What the routes work with."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from recurra.serving.service import Service
from recurra.serving.session_service import SessionService


@dataclass(frozen=True)
class Parts:
    """Handed to every group of routes."""

    service: Service
    sessions: SessionService | None
    """None where the model cannot step, or no store was given."""
    fleet_metrics: Callable[[], Awaitable[str]]
    """Prometheus' text format of the whole fleet."""
    secret: bytes = b""
    """Known to the replicas of a service alone: its bearer key, if it has one."""
