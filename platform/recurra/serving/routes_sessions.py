"""Routes about sessions."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from contextlib import aclosing

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response

from recurra.serving.edge import BODY
from recurra.serving.messages import SessionAnswer, SessionCreate, SessionStep, parse
from recurra.serving.openapi import SAFETENSORS, body_of
from recurra.serving.parts import Parts
from recurra.serving.responses import EventStream, event_of, while_connected
from recurra.serving.routes_states import check_digest
from recurra.serving.session_desks import SessionDesks


def add_session_routes(api: FastAPI, parts: Parts) -> None:
    sessions = parts.sessions_or_404

    @api.post(
        "/v1/sessions",
        status_code=201,
        tags=["sessions"],
        response_model=SessionAnswer,
        openapi_extra=body_of(SessionCreate, snapshot=True),
    )
    async def create(request: Request) -> Response:
        """Start a session: empty, after a first input, or from a snapshot (the bytes that `GET …/state` gave)."""
        body: bytes = request.scope[BODY]
        if request.headers.get("content-type", "").startswith(SAFETENSORS):
            check_digest(request, body)
            return _json(await sessions().create_from(body), 201)
        message = parse(SessionCreate, body) if body else SessionCreate()
        return _json(await while_connected(request, sessions().create(message)), 201)

    @api.get("/v1/sessions/{id}", tags=["sessions"], response_model=SessionAnswer)
    async def look(id: str) -> Response:
        """Where a session is."""
        return _json(await sessions().look(id))

    @api.post(
        "/v1/sessions/{id}/step", tags=["sessions"], response_model=SessionAnswer, openapi_extra=body_of(SessionStep)
    )
    async def step(id: str, request: Request) -> Response:
        """Send the session inputs for one or many time steps. The answer comes when the new state is in the store."""
        return await stepped(parts, id, request)

    @api.post("/v1/sessions/{id}/stream", tags=["sessions"], openapi_extra=body_of(SessionStep))
    async def stream(id: str, request: Request) -> Response:
        """As step, with the generated text as server-sent events; the last one is the whole answer."""
        body: bytes = request.scope[BODY]
        return await EventStream.open(request, _events(sessions(), id, parse(SessionStep, body)))

    @api.post("/v1/sessions/{id}/fork", status_code=201, tags=["sessions"], response_model=SessionAnswer)
    async def fork(id: str) -> Response:
        """A second session with the same past; it costs one copy of the state."""
        return _json(await sessions().fork(id), 201)

    @api.delete("/v1/sessions/{id}", status_code=204, tags=["sessions"])
    async def delete(id: str) -> Response:
        """End the session."""
        await sessions().delete(id)
        return Response(status_code=204)


async def stepped(parts: Parts, id: str, request: Request) -> Response:
    """The answer to `POST /v1/sessions/{id}/step`."""
    message = parse(SessionStep, request.scope[BODY])
    done = await while_connected(request, parts.sessions_or_404().step(id, message))
    return Response(done, media_type="application/json")


async def _events(sessions: SessionDesks, id: str, message: SessionStep) -> AsyncGenerator[bytes, None]:
    async with aclosing(sessions.stream(id, message)) as source:
        async for event in source:
            yield event_of(json.dumps(event, ensure_ascii=False).encode())


def _json(message: SessionAnswer, status: int = 200) -> Response:
    return Response(message.model_dump_json(), status, media_type="application/json")
