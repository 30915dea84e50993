"""Routes that show or replace what a session holds: its state, and the memory of a Neural Turing Machine."""

from __future__ import annotations

import base64
import hashlib
from typing import Annotated, Literal

from fastapi import FastAPI, Query
from starlette.requests import Request
from starlette.responses import Response

from recurra.errors import RequestError
from recurra.serving.edge import BODY
from recurra.serving.messages import MemoryAnswer, SessionAnswer
from recurra.serving.openapi import SAFETENSORS, body_of
from recurra.serving.parts import Parts
from recurra.serving.responses import api_json

DIGEST = "Repr-Digest"
ARROW = "application/vnd.apache.arrow.stream"
PNG = "image/png"
BINARY = {"type": "string", "format": "binary"}


def add_state_routes(api: FastAPI, parts: Parts) -> None:
    sessions = parts.sessions_or_404

    @api.get("/v1/sessions/{id}/state", tags=["sessions"])
    async def export(id: str) -> Response:
        """The session as a safetensors file, its SHA-256 in `Repr-Digest` (RFC 9530)."""
        snapshot = await sessions().export(id)
        return Response(snapshot, headers={DIGEST: digest_of(snapshot)}, media_type=SAFETENSORS)

    @api.put(
        "/v1/sessions/{id}/state",
        tags=["sessions"],
        response_model=SessionAnswer,
        openapi_extra=body_of(None, snapshot=True),
    )
    async def replace(id: str, request: Request) -> Response:
        """Set the session to a snapshot of the same bundle. A `Repr-Digest` that comes with it is checked."""
        body: bytes = request.scope[BODY]
        check_digest(request, body)
        return Response((await sessions().replace(id, body)).model_dump_json(), media_type="application/json")

    @api.get(
        "/v1/sessions/{id}/memory",
        tags=["sessions"],
        response_model=MemoryAnswer,
        responses={200: {"content": {kind: {"schema": BINARY} for kind in (ARROW, PNG)}}},
    )
    async def memory(
        id: str,
        steps: Annotated[int, Query(ge=0, le=4096)] = 32,
        format: Annotated[Literal["json", "arrow", "png"], Query()] = "json",
    ) -> Response:
        """What a Neural Turing Machine holds in its memory, and its heads' weightings at the last steps."""
        found = await sessions().memory(id, steps)
        if format == "png":
            return Response(found.to_png(), media_type=PNG)
        if format == "arrow":
            return Response(found.to_arrow(), media_type=ARROW)
        return api_json(found.to_json())


def digest_of(data: bytes) -> str:
    """The value of `Repr-Digest`."""
    return f"sha-256=:{base64.b64encode(hashlib.sha256(data).digest()).decode()}:"


def check_digest(request: Request, body: bytes) -> None:
    """Refuse a body whose `Repr-Digest` is another's."""
    given = request.headers.get(DIGEST, "")
    if given.startswith("sha-256=") and given != digest_of(body):
        raise RequestError(
            f"{DIGEST} is {given[:80]}, and the body's is {digest_of(body)}. It was altered on the way: send it again.",
            status=400,
            code="digest_wrong",
        )
