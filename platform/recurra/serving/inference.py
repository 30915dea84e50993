"""The Open Inference Protocol (V2) over one model: tensors to instances, sequences to sessions, answers to tensors.

Which tensors a model takes is read off its task's instance schema, so every task has them: a string is a BYTES tensor
[B], a list of numbers one [B, T], a list of steps one [B, T, D]; `instance` [B] takes whole instances as JSON.
`sequence_id` names a durable session: any replica goes on with it.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from dataclasses import dataclass
from typing import Any

import numpy as np
from pydantic_core import from_json

from recurra import __version__
from recurra.config.load import nearest
from recurra.errors import RequestError
from recurra.serving import tensors
from recurra.serving.messages import PredictRequest, SessionStep
from recurra.serving.messages_inference import InferOutput, InferRequest
from recurra.serving.service import Service
from recurra.serving.session_desks import SessionDesks
from recurra.serving.tensors import BINARY_SIZE, BYTES, Tensor, TensorSpec

EXTENSIONS = ("binary_tensor_data", "sequence", "model_configuration")
PLATFORM = "recurra"
INSTANCE = TensorSpec("instance", BYTES, (-1,))
PREDICTION = TensorSpec("prediction", BYTES, (-1,))
OUTPUTS = "outputs"
SEQUENCE_ID_BYTES = 24


@dataclass(frozen=True)
class Inferred:
    """An answer: the JSON, and the bytes after it where a tensor was asked for in binary form."""

    body: bytes
    json_length: int | None


class Inference:
    """Answers requests of the protocol.

    Args:
        service: The model.
        sessions: Its sessions; None where it has none.
        secret: Makes session ids of sequence ids, so that nobody can guess one from the other.
    """

    def __init__(self, service: Service, sessions: SessionDesks | None, secret: bytes) -> None:
        self._service = service
        self._sessions = sessions
        self._secret = secret
        self._inputs = {spec.name: spec for spec in (*_specs(service.task.request_schema()), INSTANCE)}
        self._outputs = (TensorSpec(OUTPUTS, "FP32", (-1, service.served.model.shape.output_size)), PREDICTION)

    def server(self) -> dict[str, Any]:
        """`GET /v2`."""
        return {"name": PLATFORM, "version": __version__, "extensions": list(EXTENSIONS)}

    def metadata(self) -> dict[str, Any]:
        """`GET /v2/models/{model}`."""
        served = self._service.served
        return {
            "name": served.name,
            "versions": [served.digest[:12]],
            "platform": PLATFORM,
            "inputs": [spec.to_json() for spec in self._inputs.values()],
            "outputs": [spec.to_json() for spec in self._outputs],
        }

    def configuration(self) -> dict[str, Any]:
        """`GET /v2/models/{model}/config`: what Triton's clients look at."""
        config = self._service.config
        found: dict[str, Any] = {"name": self._service.served.name, "platform": PLATFORM}
        found["max_batch_size"] = config.max_instances
        if self._sessions is not None:
            found["sequence_batching"] = {"max_sequence_idle_microseconds": int(config.sessions.ttl_s * 1e6)}
        return found

    async def infer(self, request: InferRequest, binary: bytes) -> Inferred:
        """The answer to one request.

        Args:
            request: The JSON.
            binary: What stands after it.

        Raises:
            RequestError: A tensor is wrong, the engine refused, or the sequence is unknown.
        """
        instances = self._instances(self._tensors(request, binary))
        self._check_outputs(request)
        sequence_id = request.parameters.sequence_id
        if sequence_id in (None, 0, ""):
            prediction = PredictRequest(instances=instances, options=request.parameters.options)
            answers: list[tuple[Any, Any]] = list(await self._service.infer(prediction, "inputs"))
            return self._answer(request, answers, self._service.served.digest)
        answer = await self._step(request, instances)
        return self._answer(request, [(answer["raw"], answer["output"])], answer["digest"])

    async def _step(self, request: InferRequest, instances: list[Any]) -> dict[str, Any]:
        if self._sessions is None:
            raise RequestError(
                f"'{self._service.served.name}' has no sessions, so it takes no 'sequence_id'. Send whole sequences.",
                status=404,
                code="no_sessions",
                param="parameters.sequence_id",
            )
        if len(instances) != 1:
            raise RequestError(
                f"The batch has {len(instances)} rows, and a sequence takes one. Send one request for each sequence.",
                code="sequence_batch",
                param="inputs",
            )
        given = request.parameters
        step = SessionStep(step=given.step, input=instances[0], options=given.options, raw=True)
        return await self._sessions.sequence(
            self.session_id(given.sequence_id), step, start=given.sequence_start, end=given.sequence_end
        )

    def session_id(self, sequence_id: int | str | None) -> str:
        """The session behind a sequence: 1 and "1" are two of them."""
        name = json.dumps([self._service.served.name, sequence_id]).encode()
        digest = hmac.digest(self._secret, name, hashlib.sha256)[:SEQUENCE_ID_BYTES]
        return f"s-{base64.urlsafe_b64encode(digest).decode()}"

    def _tensors(self, request: InferRequest, binary: bytes) -> list[Tensor]:
        found: list[Tensor] = []
        place = 0
        for given in request.inputs:
            size = given.parameters.get(BINARY_SIZE)
            if size is None:
                found.append(tensors.from_json(given.name, given.datatype, given.shape, given.data))
                continue
            if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size <= len(binary) - place:
                raise RequestError(
                    f"Tensor '{given.name[:100]}' says {BINARY_SIZE} {str(size)[:20]}, and {len(binary) - place} bytes "
                    "are left after the JSON. Send its bytes there, and the header Inference-Header-Content-Length.",
                    code="invalid_tensor",
                    param=f"inputs.{given.name[:100]}",
                )
            data = binary[place : place + size]
            found.append(tensors.from_binary(given.name, given.datatype, given.shape, data))
            place += size
        return found

    def _instances(self, given: list[Tensor]) -> list[Any]:
        rows = {tensor.name: self._rows(tensor) for tensor in given}
        counts = {len(row) for row in rows.values()}
        if len(counts) != 1 or counts == {0}:
            raise RequestError(
                f"The tensors have {sorted(counts)} rows. Give all of them the same batch size, at least 1.",
                code="invalid_tensor",
                param="inputs",
            )
        if INSTANCE.name in rows:
            return [_parsed(text) for text in rows[INSTANCE.name]]
        return [{name: row[index] for name, row in rows.items()} for index in range(counts.pop())]

    def _rows(self, tensor: Tensor) -> list[Any]:
        spec = self._inputs.get(tensor.name)
        if spec is None:
            raise RequestError(
                f"There is no input tensor '{tensor.name[:100]}'. {nearest(tensor.name, self._inputs)}",
                code="unknown_tensor",
                param=f"inputs.{tensor.name[:100]}",
            )
        shape = tensor.values.shape
        fits = len(shape) == len(spec.shape) and all(
            want in (-1, size) for want, size in zip(spec.shape, shape, strict=True)
        )
        if not fits or (spec.datatype == BYTES) != (tensor.datatype == BYTES):
            raise RequestError(
                f"Tensor '{tensor.name}' is {tensor.datatype} {list(shape)}, and the model takes {spec.datatype} "
                f"{list(spec.shape)}. Send it so; the first axis is the batch.",
                code="invalid_tensor",
                param=f"inputs.{tensor.name}",
            )
        return list(tensor.values.tolist())

    def _check_outputs(self, request: InferRequest) -> None:
        known = [spec.name for spec in self._outputs]
        for wanted in request.outputs or []:
            if wanted.name not in known:
                raise RequestError(
                    f"There is no output tensor '{wanted.name[:100]}'. {nearest(wanted.name, known)}",
                    code="unknown_tensor",
                    param=f"outputs.{wanted.name[:100]}",
                )

    def _answer(self, request: InferRequest, answers: list[tuple[Any, Any]], digest: str) -> Inferred:
        texts = [json.dumps(prediction, ensure_ascii=False) for _, prediction in answers]
        every = {
            OUTPUTS: Tensor(OUTPUTS, "FP32", np.array([numbers for numbers, _ in answers], np.float32)),
            PREDICTION.name: Tensor(PREDICTION.name, BYTES, np.array(texts, dtype=object)),
        }
        wanted = request.outputs or [InferOutput(name=name) for name in every]
        heads: list[dict[str, Any]] = []
        tails: list[bytes] = []
        for output in wanted:
            if output.parameters.get("binary_data", request.parameters.binary_data_output):
                head, tail = tensors.to_binary(every[output.name])
                tails.append(tail)
            else:
                head = tensors.to_json(every[output.name])
            heads.append(head)
        served = self._service.served
        message: dict[str, Any] = {"model_name": served.name, "model_version": digest[:12], "outputs": heads}
        if request.id is not None:
            message["id"] = request.id
        head_bytes = json.dumps(message, ensure_ascii=False).encode()
        return Inferred(head_bytes + b"".join(tails), len(head_bytes) if tails else None)


def _specs(schema: dict[str, Any]) -> list[TensorSpec]:
    """Tensors for the fields of an instance; objects have none."""
    found = []
    for name, field in schema.get("properties", {}).items():
        shape: tuple[int, ...] = (-1,)
        while field.get("type") == "array":
            shape += (
                (field["minItems"],)
                if "minItems" in field and field.get("minItems") == field.get("maxItems")
                else (-1,)
            )
            field = field.get("items", {})
        datatype = {"string": BYTES, "integer": "INT64", "number": "FP64"}.get(field.get("type", ""))
        if datatype is not None:
            found.append(TensorSpec(name, datatype, shape))
    return found


def _parsed(text: str) -> Any:
    try:
        return from_json(text, allow_inf_nan=False)
    except ValueError as exc:
        raise RequestError(
            f"An element of tensor '{INSTANCE.name}' is not valid JSON: {exc}. Send an instance as JSON in each.",
            code="invalid_tensor",
            param=f"inputs.{INSTANCE.name}",
        ) from exc
