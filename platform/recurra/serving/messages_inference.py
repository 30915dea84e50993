"""Requests and answers of the Open Inference Protocol (V2)."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, Field

from recurra.serving.messages import LenientRequest

MAX_AXES = 8


class InferTensor(LenientRequest):
    """One input tensor: its elements in `data`, flat or nested, or after the JSON (`parameters.binary_data_size`)."""

    name: str
    shape: list[int] = Field(max_length=MAX_AXES)
    datatype: str
    parameters: dict[str, Any] = Field(default={})
    data: list[Any] = Field(default=[])


class InferOutput(LenientRequest):
    """One output tensor that is wanted; `parameters.binary_data` asks for its bytes after the JSON."""

    name: str
    parameters: dict[str, Any] = Field(default={})


class InferParameters(LenientRequest):
    """`step` and `options` are ours."""

    sequence_id: int | str | None = None
    """Names a durable session; 0 and "" stand for none."""
    sequence_start: bool = False
    """Begin the sequence anew, whatever it was before."""
    sequence_end: bool = False
    """End the session after this request."""
    step: int | None = Field(default=None, ge=0)
    """The session's step number before this request: with it a retry is safe."""
    options: dict[str, Any] = Field(default={})
    """Options of the task, as `POST /v1/predict` takes them."""
    binary_data_output: bool = False


class InferRequest(LenientRequest):
    """`POST /v2/models/{model}/infer`."""

    id: str | None = None
    inputs: list[InferTensor] = Field(min_length=1)
    outputs: list[InferOutput] | None = None
    parameters: InferParameters = InferParameters()


class TensorMetadata(BaseModel):
    name: str
    datatype: str
    shape: list[int]


class InferMetadata(BaseModel):
    """`GET /v2/models/{model}`."""

    name: str
    versions: list[str]
    platform: Literal["recurra"]
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


class InferResult(BaseModel):
    name: str
    datatype: str
    shape: list[int]
    parameters: dict[str, Any] = Field(default={})
    data: list[Any] = Field(default=[])


class InferResponse(BaseModel):
    """`outputs` [B, K]: the model's numbers after the last step; `prediction` [B]: the task's answer as JSON."""

    model_name: str
    model_version: str
    id: str | None = None
    outputs: list[InferResult]


class InferError(BaseModel):
    """The protocol has no envelope; `code` is ours."""

    error: str
    code: str
