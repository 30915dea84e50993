"""What every request passes before its route, as plain ASGI layers: measured, answered, authorised, limited.

They are written by hand because each of Starlette's costs more than the whole of these (BaseHTTPMiddleware: a task and
two queues a request).
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import math
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from recurra.config.haproxy import BUSY_HEADER
from recurra.errors import RecurraError, RequestError
from recurra.serving.messages import envelope
from recurra.telemetry.metrics import Metrics

log = logging.getLogger(__name__)

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

ENDPOINT = "recurra.endpoint"
"""Key of a scope: name of the route, for metrics."""
BODY = "recurra.body"
"""Key of a scope: the whole body."""
ERROR_CODE = "recurra.error_code"
CROWDED = "recurra.crowded"
"""Key of a scope: refused because there are too many requests, whosever they are."""
BODY_TIMEOUT_S = 20.0
"""A body that is not here by then is cut off: a slow client must not hold a connection for ever."""
CUT = frozenset({"too_large", "body_timeout"})
"""Codes after which the connection is closed: what its client is still sending is read by nobody."""
REJECTIONS = frozenset({"queue_full", "too_large", "draining"})
SESSION_ROUTES = frozenset({"step", "stream", "state", "fork", "memory"})
UNCOUNTED = frozenset({"metrics", "health"})
JSON = (b"content-type", b"application/json")
BUSY = (BUSY_HEADER.encode(), b"1")


def route_path(scope: Scope) -> str:
    """The path below the prefix under which the application is mounted."""
    path: str = scope["path"]
    root: str = scope.get("root_path", "")
    return path[len(root) :] if root and path.startswith(root) else path


def endpoint_of(path: str) -> str:
    """A short name of the route, with few values, for labels of metrics."""
    parts = path.strip("/").split("/")
    if parts[0] in ("metrics", "health") or parts[:2] == ["v2", "health"]:
        return "health" if "health" in parts[:2] else "metrics"
    if parts[:2] == ["v2", "models"]:
        return parts[-1] if parts[-1] in ("infer", "ready") and len(parts) > 3 else "models"
    if parts[0] != "v1" or len(parts) < 2:
        return "other"
    if parts[1] == "sessions":
        return f"session_{parts[3]}" if len(parts) == 4 and parts[3] in SESSION_ROUTES else "session"
    return parts[1] if parts[1] in ("predict", "completions", "models", "timeseries") else "other"


class Measured:
    """Counts each request once, just before the last byte of its answer leaves: who has the answer finds it counted."""

    def __init__(self, app: App, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics
        self._latency: dict[str, Any] = {}
        self._requests: dict[tuple[str, int], Any] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        begin = time.perf_counter()
        endpoint = scope[ENDPOINT] = endpoint_of(route_path(scope))
        status = 0

        async def counting_send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            elif not message.get("more_body", False):
                self._count(endpoint, status, scope.get(ERROR_CODE), time.perf_counter() - begin)
            await send(message)

        await self._app(scope, receive, counting_send)

    def _count(self, endpoint: str, status: int, code: str | None, seconds: float) -> None:
        if endpoint in UNCOUNTED:
            return
        key = (endpoint, status)
        if key not in self._requests:
            self._requests[key] = self._metrics.counter("recurra_requests_total", endpoint=endpoint, status=str(status))
            self._latency[endpoint] = self._metrics.histogram("recurra_e2e_request_latency_seconds", endpoint=endpoint)
        self._requests[key].inc()
        self._latency[endpoint].observe(seconds)
        if status >= 400 or code is not None:
            code = code or f"http_{status}"
            self._metrics.counter("recurra_request_errors_total", endpoint=endpoint, code=code).inc()
            if code in REJECTIONS:
                self._metrics.counter("recurra_requests_rejected_total", reason=code).inc()


class Answered:
    """Turns what is raised below into the envelope; nobody outside ever sees a traceback."""

    def __init__(self, app: App) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        started = False

        async def noting_send(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self._app(scope, receive, noting_send)
        except RecurraError as exc:
            await self._fail(scope, noting_send, exc, started)
        except Exception:
            log.exception("%s %s failed.", scope["method"], scope["path"])
            await self._fail(scope, noting_send, internal_error(), started)

    async def _fail(self, scope: Scope, send: Send, exc: RecurraError, started: bool) -> None:
        if started:  # FastAPI has answered, and only then raised what it answered to
            return
        scope[ERROR_CODE] = exc.code
        headers = retry_after(exc)
        if scope.get(CROWDED):
            headers.append(BUSY)
        await answer(send, exc.status, envelope(exc, route_path(scope)), headers)


class Authorised:
    """Asks for the bearer key, if there is one; health stays open for probes."""

    def __init__(self, app: App, key: str | None) -> None:
        self._app = app
        self._key = key.encode() if key else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._key is not None and scope["type"] != "lifespan" and scope.get(ENDPOINT) != "health":
            given = dict(scope["headers"]).get(b"authorization", b"")
            scheme, _, token = given.partition(b" ")
            if scheme.lower() != b"bearer" or not hmac.compare_digest(token.strip(), self._key):
                if scope["type"] == "websocket":
                    return await _deny(scope, send, _wrong_key())
                raise _wrong_key()
        await self._app(scope, receive, send)


class Limited:
    """Reads the whole body, up to a limit in bytes and in seconds, before any work is done for it."""

    def __init__(self, app: App, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] in ("GET", "HEAD", "DELETE", "OPTIONS"):
            scope[BODY] = b""
            return await self._app(scope, receive, send)
        for name, value in scope["headers"]:
            if name == b"content-length" and (not value.isdigit() or int(value) > self._max_bytes):
                raise self._too_large(value.decode("latin-1"))
        body = scope[BODY] = await self._read(receive)
        await self._app(scope, _replay(body, receive), send)

    async def _read(self, receive: Receive) -> bytes:
        body = bytearray()
        try:
            async with asyncio.timeout(BODY_TIMEOUT_S):
                more = True
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise asyncio.CancelledError
                    body += message.get("body", b"")
                    more = message.get("more_body", False)
                    if len(body) > self._max_bytes:
                        raise self._too_large(f"more than {self._max_bytes}" if more else str(len(body)))
        except TimeoutError as exc:
            raise RequestError(
                f"The body was not complete within {BODY_TIMEOUT_S:g} s. Send it in one go.",
                status=408,
                code="body_timeout",
            ) from exc
        return bytes(body)

    def _too_large(self, seen: str) -> RequestError:
        return RequestError(
            f"The body has {seen} bytes, and this service takes {self._max_bytes} (serve.max_request_bytes). "
            "Send it in several requests.",
            status=413,
            code="too_large",
        )


async def answer(
    send: Send,
    status: int,
    body: bytes,
    headers: list[tuple[bytes, bytes]] | None = None,
    content_type: tuple[bytes, bytes] = JSON,
) -> None:
    """A whole answer in two messages."""
    length = (b"content-length", b"%d" % len(body))
    start = {"type": "http.response.start", "status": status, "headers": [content_type, length, *(headers or ())]}
    await send(start)
    await send({"type": "http.response.body", "body": body})


def retry_after(exc: RecurraError) -> list[tuple[bytes, bytes]]:
    """The header of an error that says when to come back, in whole seconds as HTTP wants them."""
    headers: list[tuple[bytes, bytes]] = []
    if isinstance(exc, RequestError) and exc.retry_after_s is not None:
        headers.append((b"retry-after", b"%d" % max(1, math.ceil(exc.retry_after_s))))
    if exc.code in CUT:
        headers.append((b"connection", b"close"))
    if exc.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    return headers


def _replay(body: bytes, receive: Receive) -> Receive:
    """The body once, then whatever the server says next (that the client has gone)."""
    pending = True

    async def replaying() -> Message:
        nonlocal pending
        if pending:
            pending = False
            return {"type": "http.request", "body": body, "more_body": False}
        return await receive()

    return replaying


def _wrong_key() -> RequestError:
    return RequestError(
        "The bearer key is missing or wrong. Send the header 'Authorization: Bearer <key>' with the key of this "
        "deployment (RECURRA_API_KEY).",
        status=401,
        code="invalid_api_key",
    )


async def _deny(scope: Scope, send: Send, exc: RequestError) -> None:
    """Refuse a WebSocket before it is opened."""
    if "websocket.http.response" not in scope.get("extensions", {}):
        return await send({"type": "websocket.close", "code": 1008, "reason": exc.code})
    headers = [JSON, *retry_after(exc)]
    await send({"type": "websocket.http.response.start", "status": exc.status, "headers": headers})
    await send({"type": "websocket.http.response.body", "body": envelope(exc)})


def internal_error() -> RequestError:
    """What a client hears of a bug of ours."""
    return RequestError(
        "The server failed on its side; its log has the details. Send the request again.",
        status=500,
        code="internal_error",
    )
