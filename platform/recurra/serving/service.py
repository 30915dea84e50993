"""One model ready to answer: what the routes call. Knows neither HTTP nor Ray."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from recurra.errors import RequestError
from recurra.models.sequence import Model
from recurra.serving.config import ServeConfig
from recurra.serving.edge import Receive
from recurra.serving.engine import Delivery, Engine, deliver
from recurra.serving.engine_metrics import EngineMetrics
from recurra.serving.history import Histories
from recurra.serving.messages import PredictRequest
from recurra.serving.tickets import run, unheard
from recurra.serving.work import Sequence
from recurra.storage.store import Store
from recurra.tasks.base import Encoded, Task
from recurra.tasks.language_model import LanguageModelTask
from recurra.telemetry.metrics import Metrics

T = TypeVar("T")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ServedModel:
    """What a bundle of the registry holds, as far as serving needs it."""

    name: str
    digest: str
    task: Task
    model: Model
    created: str = ""
    """ISO 8601 time at which the bundle was published."""
    metrics: Mapping[str, float | None] | None = None
    """Of its evaluation."""
    card: Mapping[str, Any] | None = None
    """Costs, data and limits, as the bundle has them."""
    released_s: float = 0.0
    """When the deployment that serves it was made, in seconds since 1970."""


class Service:
    """A model, its engine and its metrics.

    Args:
        served: The model; in eval mode, on its device.
        config: The `serve` section.
        metrics: With the label `model` bound.
        sessions_store: Where sessions of this model are kept; None = the model has no sessions here.
    """

    def __init__(
        self, served: ServedModel, config: ServeConfig, metrics: Metrics, sessions_store: Store | None
    ) -> None:
        self.served = served
        self.config = config
        self.metrics = metrics
        self.sessions_store = sessions_store
        self.task = served.task
        self.text_task = served.task if isinstance(served.task, LanguageModelTask) else None
        self.leaving = False
        """Whether the replica is on its way out: streams that can go on elsewhere end at their next token."""
        self._loop: asyncio.AbstractEventLoop | None = None
        self.engine = Engine(
            served.model,
            config,
            EngineMetrics(metrics),
            self._post,
            self.text_task.text_of if self.text_task else None,
        )
        keep = config.sessions.replay_steps if config.sessions.on_update == "replay" else 0
        self.histories = Histories(served.task, served.model.shape, keep)
        self._outputs = "all" if served.task.streams else "last"

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Start the engine; results come to this loop."""
        begin = time.perf_counter()
        self._loop = loop
        self.engine.start()
        self.metrics.gauge("recurra_session_state_bytes").set(self.engine.layout.spec.size_bytes)
        self.metrics.gauge(
            "recurra_model_info",
            digest=self.served.digest[:12],
            task=self.task.kind,
            cell=self.served.model.config.cell,
        ).set(1)
        log.info("Engine is warm after %.2f s.", time.perf_counter() - begin)

    def stop(self) -> None:
        """End the engine; what is still in it fails with 503."""
        self.engine.stop()

    def leave(self, leaving: bool = True) -> None:
        """Take note that the replica is to leave; requests are still served until it is drained."""
        self.leaving = leaving

    async def drain(self, timeout_s: float) -> bool:
        """Take nothing new, and wait for what is here. Returns whether all of it ended in time."""
        self.leave()
        self.engine.drain()
        until = time.monotonic() + timeout_s
        while not self.engine.idle and time.monotonic() < until:
            await asyncio.sleep(0.01)
        return self.engine.idle

    def check_model(self, reference: str, param: str | None = "model") -> None:
        """Refuse a request that is for another model: `name`, `name@alias` or `name@digest` name this one."""
        name, _, version = reference.partition("@")
        digest = self.served.digest
        if name == self.served.name and (len(version) < 4 or not _is_hex(version) or digest.startswith(version)):
            return
        raise RequestError(
            f"'{reference[:100]}' is not served here. Ask for '{self.served.name}'; GET /v1/models lists what there is.",
            status=404,
            code="model_not_found",
            param=param,
        )

    async def predict(
        self, request: PredictRequest, field: str = "instances", receive: Receive | None = None
    ) -> list[Any]:
        """The task's answer to each instance; see `infer`."""
        return [answer for _, answer in await self.infer(request, field, receive)]

    async def infer(
        self, request: PredictRequest, field: str = "instances", receive: Receive | None = None
    ) -> list[tuple[NDArray[np.float32], Any]]:
        """For each instance the model's numbers [K] after its last step, and the task's answer.

        Args:
            request: Checked but for what the instances hold.
            field: What the client called the instances.
            receive: See `tickets.run`.

        Raises:
            RequestError: An instance or option is wrong (`param` names it), or the engine refused or failed it.
        """
        count = len(request.instances)
        if count > self.config.max_instances:
            raise RequestError(
                f"'{field}' has {count} items, and one request may have {self.config.max_instances}. Send them in parts.",
                status=413,
                code="too_many_instances",
                param=field,
            )
        encoded = await self.beside(
            lambda: [self.encode(item, f"{field}.{index}") for index, item in enumerate(request.instances)]
        )
        sequences = [self.sequence(item, outputs=self._outputs) for item in encoded]
        results = await run(self.engine, sequences, receive)

        def answers() -> list[tuple[NDArray[np.float32], Any]]:
            found = []
            for index, (result, item) in enumerate(zip(results, encoded, strict=True)):
                assert result.outputs is not None
                last_K = result.outputs if result.outputs.ndim == 1 else result.outputs[-1]
                found.append((last_K, self.decode(result.outputs, item, request.options, f"{field}.{index}")))
            return found

        return await self.beside(answers)

    def encode(self, instance: Any, param: str, context: Mapping[str, Any] | None = None) -> Encoded:
        """The task's encoding, with its length checked; errors name the field as the client sent it."""
        try:
            encoded = self.task.encode(instance, context)
        except RequestError as exc:
            exc.param = f"{param}.{exc.param}" if exc.param else param
            raise
        except (KeyError, TypeError, ValueError) as exc:
            if context is None:
                raise
            raise RequestError(
                "The session's context does not fit the model: it came with a snapshot that was altered. "
                "Send the bytes that GET .../state gave.",
                code="invalid_context",
                param=param,
            ) from exc
        self.check_steps(len(encoded.inputs), param)
        return encoded

    def decode(self, outputs: Any, encoded: Encoded, options: Mapping[str, Any], param: str) -> Any:
        """The task's answer; an option that it refuses is named as the client sent it."""
        try:
            return self.task.decode(outputs, encoded, options)
        except RequestError as exc:
            exc.param = f"options.{exc.param}" if exc.param else param
            raise

    async def beside(self, work: Callable[[], T]) -> T:
        """What the task does with instances: on the event loop where that is quick, else beside it."""
        return await asyncio.to_thread(work) if self.task.costly else work()

    def check_steps(self, steps: int, param: str) -> None:
        """Refuse inputs that are too long."""
        if steps > self.config.max_steps_per_request:
            raise RequestError(
                f"'{param}' has {steps} time steps, and one input may have {self.config.max_steps_per_request} "
                "(serve.max_steps_per_request). Send it in parts through a session, or cut it.",
                status=413,
                code="too_long",
                param=param,
            )

    def sequence(self, encoded: Encoded, **settings: Any) -> Sequence:
        """A sequence for `tickets.run` or `tickets.stream`, with this service's deadline."""
        return Sequence(encoded.inputs, unheard, deadline_s=time.monotonic() + self.config.deadline_s, **settings)

    def describe(self) -> dict[str, Any]:
        """One item of `GET /v1/models`."""
        served = self.served
        return {
            "id": served.name,
            "object": "model",
            "created": int(datetime.fromisoformat(served.created).timestamp()) if served.created else 0,
            "owned_by": "recurra",
            "digest": served.digest,
            "published": served.created,
            "task": self.task.kind,
            "cell": served.model.config.cell,
            "metrics": dict(served.metrics or {}),
            "sessions": self.sessions_store is not None and served.model.steppable,
            "state_bytes": self.engine.layout.spec.size_bytes,
            "limits": {
                "max_steps_per_request": self.config.max_steps_per_request,
                "max_request_bytes": self.config.max_request_bytes,
                "max_instances": self.config.max_instances,
                "max_new_tokens": self.config.max_new_tokens,
                "deadline_s": self.config.deadline_s,
            },
            "card": dict(served.card or {}),
            "instance_schema": self.task.request_schema(),
        }

    def _post(self, events: list[Delivery]) -> None:
        assert self._loop is not None
        try:
            self._loop.call_soon_threadsafe(deliver, events)
        except RuntimeError:  # the loop is closed: nobody is left to hear
            log.debug("%d results came after the event loop was closed.", len(events))


def new_id(prefix: str) -> str:
    """An id that cannot be guessed, such as `cmpl-…`."""
    return f"{prefix}-{secrets.token_hex(12)}"


def _is_hex(text: str) -> bool:
    return all(character in "0123456789abcdef" for character in text)
