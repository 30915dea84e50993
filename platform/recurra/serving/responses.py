"""JSON answers, server-sent events, and noticing that the client has gone."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, Coroutine
from contextlib import aclosing
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from recurra.errors import RecurraError
from recurra.serving.edge import ERROR_CODE, internal_error
from recurra.serving.messages import envelope
from recurra.serving.tickets import client_gone, disconnected

log = logging.getLogger(__name__)
T = TypeVar("T")

DONE = b"data: [DONE]\n\n"


def api_json(value: Any, status: int = 200) -> Response:
    """Compact JSON; NaN is a bug of ours, never an answer."""
    body = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return Response(body, status, media_type="application/json")


async def while_connected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, which is cancelled once the client has gone.

    Raises:
        RequestError: 499, which nobody reads but the metrics.
    """
    task = asyncio.create_task(work)
    gone = asyncio.create_task(disconnected(request.receive))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise client_gone()
    finally:
        gone.cancel()
        if task.cancel():
            await asyncio.wait({task})  # what it works on is in use until it has ended


class EventStream(Response):
    """Server-sent events, each `data: {…}`, and `data: [DONE]` at the end. One that fails ends with `event: error`."""

    media_type = "text/event-stream"

    def __init__(self, first: bytes | None, events: AsyncGenerator[bytes, None]) -> None:
        self.status_code = 200
        self.background = None
        self.init_headers({"cache-control": "no-cache", "x-accel-buffering": "no"})
        self._first = first
        self._events = events

    @classmethod
    async def open(cls, request: Request, events: AsyncGenerator[bytes, None]) -> EventStream:
        """Wait for the first event before the status is sent, so that a refused request gets its own status."""
        try:
            return cls(await while_connected(request, _next(events)), events)
        except BaseException:
            await events.aclose()
            raise

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        pump = asyncio.create_task(self._pump(scope, send))
        gone = asyncio.create_task(disconnected(receive))
        try:
            await asyncio.wait({pump, gone}, return_when=asyncio.FIRST_COMPLETED)
            if pump.done():
                pump.result()
            else:
                scope[ERROR_CODE] = "client_gone"
                pump.cancel()
                await asyncio.wait({pump})
                await send({"type": "http.response.body", "body": b""})
        finally:
            pump.cancel()
            gone.cancel()

    async def _pump(self, scope: Scope, send: Send) -> None:
        async with aclosing(self._events):
            try:
                if self._first is not None:
                    await send({"type": "http.response.body", "body": self._first, "more_body": True})
                    async for event in self._events:
                        await send({"type": "http.response.body", "body": event, "more_body": True})
                last = DONE
            except RecurraError as exc:
                scope[ERROR_CODE] = exc.code
                last = b"event: error\ndata: " + envelope(exc) + b"\n\n"
            except Exception:
                log.exception("A stream of %s failed.", scope["path"])
                scope[ERROR_CODE] = "internal_error"
                last = b"event: error\ndata: " + envelope(internal_error()) + b"\n\n"
        await send({"type": "http.response.body", "body": last})


def event_of(data: bytes) -> bytes:
    """One server-sent event."""
    return b"data: %b\n\n" % data


async def _next(events: AsyncGenerator[bytes, None]) -> bytes | None:
    return await anext(events, None)
