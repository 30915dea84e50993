"""A session over a WebSocket: one connection, many steps, each answered by the events that `…/stream` sends."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, Coroutine
from contextlib import aclosing
from typing import Any

from fastapi import FastAPI
from starlette.websockets import WebSocket, WebSocketDisconnect

from recurra.errors import RecurraError, RequestError
from recurra.serving.edge import internal_error
from recurra.serving.messages import SessionStep, envelope, parse
from recurra.serving.parts import Parts
from recurra.serving.session_desks import SessionDesks

log = logging.getLogger(__name__)

ENDPOINT_NAME = "session_socket"
WAITING = 16
"""Messages that a client may send ahead of the answers."""


def add_socket_routes(api: FastAPI, parts: Parts) -> None:
    @api.websocket("/v1/sessions/{id}/stream")
    async def talk(id: str, websocket: WebSocket) -> None:
        """Each message is the body of a step; its answers end with one that has `step`, or with one that has `error`.

        An error ends the request and not the connection.
        """
        await websocket.accept()
        try:
            sessions = parts.sessions_or_404()
        except RequestError as exc:
            await websocket.send_text(envelope(exc).decode())
            return await websocket.close(1011)
        await _Conversation(websocket, parts, sessions, id).hold()


class _Conversation:
    """Reads ahead, so that a client that leaves in the middle of an answer is noticed and its slot is free."""

    def __init__(self, websocket: WebSocket, parts: Parts, sessions: SessionDesks, id: str) -> None:
        self._socket = websocket
        self._parts = parts
        self._sessions = sessions
        self._id = id
        self._inbox: asyncio.Queue[bytes] = asyncio.Queue(WAITING)

    async def hold(self) -> None:
        reading = asyncio.create_task(self._read())
        answering = asyncio.create_task(self._answer_all())
        try:
            await asyncio.wait({reading, answering}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (reading, answering):
                task.cancel()
            await asyncio.gather(reading, answering, return_exceptions=True)

    async def _read(self) -> None:
        while True:
            message = await self._socket.receive()
            if message["type"] == "websocket.disconnect":
                return
            text = message.get("text")
            await self._inbox.put(message.get("bytes") or b"" if text is None else text.encode())

    async def _answer_all(self) -> None:
        while True:
            body = await self._inbox.get()
            try:
                await self._answer(body)
                self._count(200)
            except WebSocketDisconnect:
                return
            except RecurraError as exc:
                await self._fail(exc)
            except Exception:
                log.exception("A message to session %s failed.", self._id)
                await self._fail(internal_error())

    async def _answer(self, body: bytes) -> None:
        limit = self._parts.service.config.max_request_bytes
        if len(body) > limit:
            raise RequestError(
                f"The message has {len(body)} bytes, and this service takes {limit} (serve.max_request_bytes). "
                "Send it in several.",
                status=413,
                code="too_large",
            )
        request = parse(SessionStep, body)
        if request.generate is None:
            return await self._send(await self._sessions.step(self._id, request))
        events: AsyncGenerator[dict[str, Any], None] = self._sessions.stream(self._id, request)
        async with aclosing(events) as source:
            async for event in source:
                await self._send(json.dumps(event, ensure_ascii=False).encode())

    def _send(self, data: bytes) -> Coroutine[Any, Any, None]:
        return self._socket.send_text(data.decode())

    async def _fail(self, exc: RecurraError) -> None:
        self._count(exc.status)
        await self._send(envelope(exc))

    def _count(self, status: int) -> None:
        metrics = self._parts.service.metrics
        metrics.counter("recurra_requests_total", endpoint=ENDPOINT_NAME, status=str(status)).inc()
