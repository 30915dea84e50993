"""Routes of the Open Inference Protocol (V2): what KServe's and Triton's clients speak."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response

from recurra.errors import RequestError
from recurra.serving.edge import BODY
from recurra.serving.inference import Inference
from recurra.serving.messages import parse
from recurra.serving.messages_inference import InferMetadata, InferRequest, InferResponse
from recurra.serving.openapi import body_of
from recurra.serving.parts import Parts
from recurra.serving.responses import api_json, while_connected

HEADER_LENGTH = "Inference-Header-Content-Length"


def add_inference_routes(api: FastAPI, parts: Parts) -> None:
    service = parts.service
    inference = Inference(service, parts.sessions, parts.secret)

    def check(model: str, version: str | None) -> None:
        service.check_model(model if version is None else f"{model}@{version}")

    @api.get("/v2", tags=["open inference protocol"])
    async def server() -> dict[str, Any]:
        """What this server is, and which extensions of the protocol it has."""
        return inference.server()

    @api.get("/v2/models/{model}/versions/{version}", tags=["open inference protocol"], response_model=InferMetadata)
    @api.get("/v2/models/{model}", tags=["open inference protocol"], response_model=InferMetadata)
    async def metadata(model: str, version: str | None = None) -> Response:
        """The tensors that the model takes and gives."""
        check(model, version)
        return api_json(inference.metadata())

    @api.get("/v2/models/{model}/versions/{version}/config", tags=["open inference protocol"], include_in_schema=False)
    @api.get("/v2/models/{model}/config", tags=["open inference protocol"])
    async def configuration(model: str, version: str | None = None) -> dict[str, Any]:
        """Triton's model configuration, as far as there is one here."""
        check(model, version)
        return inference.configuration()

    @api.get("/v2/models/{model}/versions/{version}/ready", tags=["open inference protocol"])
    @api.get("/v2/models/{model}/ready", tags=["open inference protocol"])
    async def ready(model: str, version: str | None = None) -> Response:
        """200 while the model takes requests, 503 otherwise."""
        check(model, version)
        ready = service.engine.healthy
        return api_json({"name": service.served.name, "ready": ready}, 200 if ready else 503)

    @api.post(
        "/v2/models/{model}/versions/{version}/infer",
        tags=["open inference protocol"],
        response_model=InferResponse,
        openapi_extra=body_of(InferRequest),
    )
    @api.post(
        "/v2/models/{model}/infer",
        tags=["open inference protocol"],
        response_model=InferResponse,
        openapi_extra=body_of(InferRequest),
    )
    async def infer(model: str, request: Request, version: str | None = None) -> Response:
        """Tensors in, tensors out. `sequence_id` with `sequence_start` and `sequence_end` steps a durable session."""
        check(model, version)
        body: bytes = request.scope[BODY]
        head, tail = _cut(body, request.headers.get(HEADER_LENGTH))
        done = await while_connected(request, inference.infer(parse(InferRequest, head), tail))
        if done.json_length is None:
            return Response(done.body, media_type="application/json")
        headers = {HEADER_LENGTH: str(done.json_length)}
        return Response(done.body, headers=headers, media_type="application/octet-stream")


def _cut(body: bytes, length: str | None) -> tuple[bytes, bytes]:
    if length is None:
        return body, b""
    if not length.isascii() or not length.isdigit() or int(length) > len(body):
        raise RequestError(
            f"{HEADER_LENGTH} is {length[:20]}, and the body has {len(body)} bytes. Send the length of the JSON.",
            status=400,
            code="invalid_header",
        )
    return body[: int(length)], body[int(length) :]
