"""Requests of a session, checked and made ready for the engine; and what came out of it, as answers."""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recurra.errors import RequestError
from recurra.serving.completions import sampling_of
from recurra.serving.messages import Generated, GenerateOptions, SessionAnswer, SessionStep
from recurra.serving.sampling import find_stop
from recurra.serving.service import Service
from recurra.serving.snapshot import Snapshot
from recurra.serving.work import Result, Sequence
from recurra.tasks.base import Encoded


@dataclass(frozen=True)
class Plan:
    """A request of a session, ready for the engine."""

    sequence: Sequence
    encoded: Encoded | None
    options: dict[str, Any]
    generate: GenerateOptions | None
    skipped: int
    """Outputs at the start that belong to tokens of an earlier request."""
    raw: bool

    def consumed(self, result: Result) -> NDArray[Any]:
        """Everything between the state before a request and the one after it."""
        inputs: NDArray[Any] = self.sequence.inputs
        if self.generate is None or not self.generate.commit:
            return inputs
        new = result.tokens[len(self.generate.resume) : len(result.tokens) - len(result.pending)]
        return np.concatenate([inputs, np.array(new, np.int64)])


def fingerprint_of(request: SessionStep) -> str:
    """What tells a repeat from another request; one that resumes is a repeat of the one that broke off."""
    return hashlib.sha256(request.model_dump_json(exclude={"generate": {"resume"}}).encode()).hexdigest()


class Planner:
    """Plans for the sessions of one service."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def plan(self, snapshot: Snapshot, request: SessionStep) -> Plan:
        """A request on a session.

        Raises:
            RequestError: A field is wrong, or there is nothing to read.
        """
        service = self._service
        generate = request.generate
        if generate is not None:
            self._check_generate(generate)
        encoded = None
        if request.input is not None:
            encoded = service.encode(request.input, "input", snapshot.context)
        if encoded is None and not (generate and snapshot.pending):
            raise RequestError(
                "There is nothing to read: send 'input'. It may be left out only to go on generating after a request "
                "whose generated tokens became part of the session.",
                code="invalid_request",
                param="input",
            )
        pending = np.array(snapshot.pending, np.int64)
        resumed = list(generate.resume) if generate is not None else []
        inputs = pending if encoded is None else encoded.inputs
        if len(resumed) or (encoded is not None and len(pending)):
            parts = [pending, inputs[:0] if encoded is None else inputs, np.array(resumed, np.int64)]
            inputs = np.concatenate(parts)
        wants_output = encoded is not None and generate is None
        sequence = service.sequence(
            Encoded(inputs),
            state=snapshot.state,
            outputs=("all" if service.task.streams else "last") if wants_output else "none",
            keep="inputs" if generate and not generate.commit else "end",
            sampling=self._sampling(generate),
        )
        if resumed:  # as if it had generated them itself: they count for max_tokens, stop texts and the answer
            sequence.tokens, sequence.last_token_s = resumed, time.monotonic()
        return Plan(sequence, encoded, request.options, generate, len(pending), request.raw)

    def _sampling(self, generate: GenerateOptions | None) -> Any:
        if generate is None:
            return None
        assert self._service.text_task is not None
        return sampling_of(
            self._service.text_task,
            seed=generate.seed,
            stop=list(generate.stop),
            max_tokens=generate.max_tokens,
            temperature=generate.temperature,
            top_p=generate.top_p,
            top_k=generate.top_k,
            logprobs=generate.logprobs,
            position=len(generate.resume),
        )

    def _check_generate(self, generate: GenerateOptions) -> None:
        service = self._service
        if service.text_task is None:
            raise RequestError(
                f"'{service.served.name}' is a model for {service.task.kind}, which does not generate. Leave 'generate' out.",
                code="not_a_language_model",
                param="generate",
            )
        if generate.max_tokens > service.config.max_new_tokens:
            raise RequestError(
                f"'generate.max_tokens' is {generate.max_tokens}, and this service generates up to "
                f"{service.config.max_new_tokens} (serve.max_new_tokens). Ask for less.",
                code="too_many_tokens",
                param="generate.max_tokens",
            )
        if generate.resume:
            self._check_resume(generate)

    def _check_resume(self, generate: GenerateOptions) -> None:
        size = self._service.served.model.shape.input_size
        if not all(0 <= token < size for token in generate.resume):
            raise RequestError(
                f"'generate.resume' holds a token beyond 0 to {size - 1}. Send those that the stream gave.",
                code="token_out_of_range",
                param="generate.resume",
            )
        if not generate.commit or generate.logprobs is not None or len(generate.resume) >= generate.max_tokens:
            raise RequestError(
                f"'generate.resume' has {len(generate.resume)} tokens and max_tokens is {generate.max_tokens}. Send fewer than "
                "that, with commit, and without logprobs; else send the request without it.",
                code="cannot_resume",
                param="generate.resume",
            )

    def outcome(self, plan: Plan, result: Result) -> SessionAnswer:
        """The answer, without what the session itself says."""
        output = raw = None
        if result.outputs is not None:
            assert plan.encoded is not None
            if plan.raw:
                raw = (result.outputs if result.outputs.ndim == 1 else result.outputs[-1]).tolist()
            numbers = result.outputs[plan.skipped :] if result.outputs.ndim == 2 else result.outputs
            output = self._service.decode(numbers, plan.encoded, plan.options, "input")
        generated = self._generated(plan, result)
        return SessionAnswer(
            id="", model="", digest="", step=0, expires_at=0.0, output=output, generated=generated, raw=raw
        )

    def _generated(self, plan: Plan, result: Result) -> Generated | None:
        task = self._service.text_task
        if plan.generate is None or task is None:
            return None
        text = task.text_of(result.tokens)
        place = find_stop(text, tuple(plan.generate.stop))
        return Generated(
            text=text if place is None else text[:place],
            tokens=result.tokens,
            finish_reason="stop" if result.finish == "stop" else "length",
            logprobs=[value for value, _ in result.logprobs] if result.logprobs else None,
        )
