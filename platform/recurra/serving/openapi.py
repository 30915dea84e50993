"""The OpenAPI document: bodies that routes parse themselves, the task's own instance schema, errors, the bearer key."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from recurra.serving.messages import (
    CompletionRequest,
    ErrorEnvelope,
    ForecastRequest,
    PredictRequest,
    SessionCreate,
    SessionStep,
)
from recurra.serving.messages_inference import InferError, InferRequest
from recurra.serving.service import Service

BODIES: tuple[type[BaseModel], ...] = (
    PredictRequest,
    CompletionRequest,
    ForecastRequest,
    SessionCreate,
    SessionStep,
    InferRequest,
    ErrorEnvelope,
    InferError,
)
OPEN_PATHS = ("/health", "/v2/health")
SAFETENSORS = "application/octet-stream"
"""Content type of snapshots: safetensors has none of its own."""
ERRORS = {
    "400": "Not JSON.",
    "401": "The bearer key is missing or wrong.",
    "404": "Unknown model, session or route.",
    "409": "The session is at another step.",
    "410": "The session has expired or was deleted.",
    "412": "The state belongs to another bundle.",
    "413": "Too large or too long.",
    "422": "A field is wrong; `param` names it.",
    "429": "The queue is full; `Retry-After` says when to come back.",
    "503": "The replica is leaving or the store does not answer; try again.",
    "504": "Not ready within the deadline.",
}


def body_of(model: type[BaseModel] | None, *, snapshot: bool = False) -> dict[str, Any]:
    """The request body of a route that parses it itself: JSON, a snapshot, or either."""
    content: dict[str, Any] = {}
    if model is not None:
        content["application/json"] = {"schema": {"$ref": f"#/components/schemas/{model.__name__}"}}
    if snapshot:
        content[SAFETENSORS] = {"schema": {"type": "string", "format": "binary"}}
    return {"requestBody": {"required": True, "content": content}}


def describe(api: FastAPI, service: Service, *, with_key: bool) -> None:
    """Give the application its document.

    Args:
        with_key: Whether requests must carry the bearer key.
    """

    def openapi() -> dict[str, Any]:
        if api.openapi_schema is None:
            api.openapi_schema = _document(api, service, with_key)
        return api.openapi_schema

    api.openapi = openapi  # type: ignore[method-assign]


def _document(api: FastAPI, service: Service, with_key: bool) -> dict[str, Any]:
    document = get_openapi(
        title=f"Recurra: {service.served.name}",
        version=service.served.digest[:12],
        description=f"A {service.task.kind} model, served by Recurra.",
        routes=api.routes,
    )
    _, bodies = models_json_schema(
        [(model, "validation") for model in BODIES], ref_template="#/components/schemas/{model}"
    )
    components = document.setdefault("components", {})
    schemas = components.setdefault("schemas", {})
    schemas |= bodies["$defs"]
    schemas.pop("HTTPValidationError", None)
    schemas.pop("ValidationError", None)
    schemas["Instance"] = service.task.request_schema()
    instance = {"$ref": "#/components/schemas/Instance"}
    schemas["PredictRequest"]["properties"]["instances"]["items"] = instance
    for name in ("SessionCreate", "SessionStep"):
        schemas[name]["properties"]["input"] = {"anyOf": [instance, {"type": "null"}], "default": None}
    if with_key:
        components["securitySchemes"] = {"bearer": {"type": "http", "scheme": "bearer"}}
    envelope = {"application/json": {"schema": {"$ref": "#/components/schemas/ErrorEnvelope"}}}
    inference = {"application/json": {"schema": {"$ref": "#/components/schemas/InferError"}}}
    for path, operations in document["paths"].items():
        for operation in operations.values():
            operation["responses"].pop("422", None)
            if path.startswith(("/v1/", "/v2")):
                error = envelope if path.startswith("/v1/") else inference
                for status, text in ERRORS.items():
                    operation["responses"][status] = {"description": text, "content": error}
            if with_key and not path.startswith(OPEN_PATHS):
                operation["security"] = [{"bearer": []}]
    return document
