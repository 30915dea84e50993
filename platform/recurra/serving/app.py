"""The ASGI application of one replica.

Order of layers, outermost first: `Measured` (counts what leaves, errors too), `Answered` (errors to envelopes),
`Authorised` (before a body is read), `Limited` (reads the body), `Admitted` (is there room; before a body is parsed),
`Switch` (which bundle), `Predict`, `Complete` and `Step` (the hot paths), then FastAPI's routes of that bundle.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from pydantic_core import to_json
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from recurra.errors import RecurraError, RequestError
from recurra.serving.admission import Admitted, Crowd
from recurra.serving.edge import (
    BODY,
    ENDPOINT,
    ERROR_CODE,
    Answered,
    App,
    Authorised,
    Limited,
    Measured,
    Receive,
    Scope,
    Send,
    answer,
    internal_error,
    retry_after,
    route_path,
)
from recurra.serving.lineup import Lineup
from recurra.serving.messages import PredictRequest, envelope, parse
from recurra.serving.openapi import describe
from recurra.serving.parts import Parts
from recurra.serving.routes_inference import add_inference_routes
from recurra.serving.routes_models import add_model_routes, completed
from recurra.serving.routes_sessions import add_session_routes, stepped
from recurra.serving.routes_sockets import add_socket_routes
from recurra.serving.routes_states import add_state_routes
from recurra.serving.service import Service
from recurra.serving.session_desks import SessionDesks
from recurra.serving.switch import Switch
from recurra.serving.trial import Trial

PREDICT = "/v1/predict/"
COMPLETIONS = "/v1/completions"


def build_asgi(
    lineup: Lineup,
    api_key: str | None = None,
    fleet_metrics: Callable[[], Awaitable[str]] | None = None,
    around: Callable[[], AbstractAsyncContextManager[None]] = nullcontext,
    trial: Trial | None = None,
) -> App:
    """The application; its lifespan starts and stops the engines.

    Args:
        lineup: The bundles.
        api_key: Bearer key that requests must carry; None = open.
        fleet_metrics: Text of `GET /metrics`; None = this process alone.
        around: Entered before the engines start, left after they have stopped.
        trial: Of the candidate, where there is one.
    """
    stable = lineup.stable.service

    async def own_metrics() -> str:
        return stable.metrics.exposition()

    heard = trial.hear if trial is not None else _unheard
    desks = SessionDesks(lineup, heard) if lineup.stable.sessions is not None else None

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with around():
            await lineup.open(asyncio.get_running_loop())
            watching = asyncio.create_task(trial.run()) if trial is not None else None
            try:
                yield
            finally:
                if watching is not None:
                    watching.cancel()
                await lineup.close()

    def of(service: Service) -> App:
        parts = Parts(service, lineup.describe, desks, fleet_metrics or own_metrics, (api_key or "").encode())
        routes = Step(_routes(parts, lifespan, with_key=api_key is not None), parts)
        return Predict(Complete(routes, service), service)

    apps = {desk.digest: of(desk.service) for desk in lineup.deployed}
    layers: App = Switch(lineup, apps, heard)
    crowd = Crowd(2 * stable.config.slots, stable.config.max_wait_s)
    layers = Admitted(layers, crowd, stable.engine.check_room)
    layers = Limited(layers, stable.config.max_request_bytes)
    layers = Authorised(layers, api_key)
    layers = Answered(layers)
    return Measured(layers, stable.metrics)


def _routes(
    parts: Parts, lifespan: Callable[[FastAPI], AbstractAsyncContextManager[None]], *, with_key: bool
) -> FastAPI:
    api = FastAPI(
        title="Recurra", docs_url="/docs", redoc_url=None, lifespan=lifespan, separate_input_output_schemas=False
    )
    for kind, handler in HANDLERS:
        api.add_exception_handler(kind, handler)
    add_model_routes(api, parts)
    add_session_routes(api, parts)
    add_state_routes(api, parts)
    add_socket_routes(api, parts)
    add_inference_routes(api, parts)
    describe(api, parts.service, with_key=with_key)
    return api


def _unheard(digest: str, seconds: float | None, failed: bool) -> None:
    """No candidate, nobody who judges."""


class Predict:
    """`POST /v1/predict/{model}` without a framework in between: FastAPI's routing alone takes longer than all of this.

    The route is in FastAPI, too, for the OpenAPI document; requests never get there.
    """

    def __init__(self, app: App, service: Service) -> None:
        self._app = app
        self._service = service
        served = service.served
        head = to_json({"model": served.name, "digest": served.digest})
        self._head = head[:-1] + b',"predictions":'

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope.get(ENDPOINT) != "predict" or scope["method"] != "POST":
            return await self._app(scope, receive, send)
        self._service.check_model(route_path(scope)[len(PREDICT) :])
        predictions = await self._service.predict(parse(PredictRequest, scope[BODY]), receive=receive)
        await answer(send, 200, b"%b%b}" % (self._head, to_json(predictions, inf_nan_mode="constants")))


class Complete:
    """`POST /v1/completions` in the same way."""

    def __init__(self, app: App, service: Service) -> None:
        self._app = app
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope.get(ENDPOINT) != "completions" or scope["method"] != "POST" or route_path(scope) != COMPLETIONS:
            return await self._app(scope, receive, send)
        response = await completed(self._service, Request(scope, receive))
        await response(scope, receive, send)


class Step:
    """`POST /v1/sessions/{id}/step` in the same way."""

    def __init__(self, app: App, parts: Parts) -> None:
        self._app = app
        self._parts = parts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope.get(ENDPOINT) != "session_step" or scope["method"] != "POST":
            return await self._app(scope, receive, send)
        *before, id, last = route_path(scope).split("/")
        if [*before, last] != ["", "v1", "sessions", "step"]:
            return await self._app(scope, receive, send)
        response = await stepped(self._parts, id, Request(scope, receive))
        await response(scope, receive, send)


async def _http_error(request: Request, exc: Exception) -> Response:
    """What Starlette raises by itself: unknown route, wrong method."""
    assert isinstance(exc, HTTPException)
    path = route_path(request.scope)
    if exc.status_code == 404:
        error = RequestError(
            f"There is no route {path[:200]}. GET /openapi.json lists those there are.",
            status=404,
            code="route_not_found",
        )
    elif exc.status_code == 405:
        allowed = (exc.headers or {}).get("Allow", "another method")
        error = RequestError(
            f"{path[:200]} does not take {request.method}. Use {allowed}.", status=405, code="method_not_allowed"
        )
    else:
        error = RequestError(str(exc.detail), status=exc.status_code, code=f"http_{exc.status_code}")
    response = await _own_error(request, error)
    response.headers.update(exc.headers or {})
    return response


async def _bad_parameter(request: Request, exc: Exception) -> Response:
    """A parameter in the query that FastAPI refuses."""
    assert isinstance(exc, RequestValidationError)
    (error, *_) = exc.errors()
    param = str(error["loc"][-1])
    message = f"'{param}' is {str(error['input'])[:80]!r}: {str(error['msg']).lower()}."
    return await _own_error(request, RequestError(message, code="invalid_request", param=param))


async def _own_error(request: Request, exc: Exception) -> Response:
    assert isinstance(exc, RecurraError)
    request.scope[ERROR_CODE] = exc.code
    response = Response(envelope(exc, route_path(request.scope)), exc.status, media_type="application/json")
    response.raw_headers += retry_after(exc)
    return response


async def _bug(request: Request, _: Exception) -> Response:
    """`Answered` logs it: Starlette raises it again after this answer."""
    return await _own_error(request, internal_error())


HANDLERS = (
    (HTTPException, _http_error),
    (RequestValidationError, _bad_parameter),
    (RecurraError, _own_error),
    (Exception, _bug),
)
