"""The short way from a replica's HTTP server to the application.

With HAProxy each replica has an HTTP server of its own, and Ray Serve keeps books on every request there (two tasks, a
queue, an access log line, six metrics: more than the whole of ours). The engine has its own queue, deadline, load and
metrics, and the server itself waits for open requests when the replica leaves, so nothing is lost by going past them.

Ray calls `middlewares` in every process that serves HTTP, because `RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH` names it
(config/env.py). Without that variable, or in a process that holds no application, requests take Ray's way.
"""

from __future__ import annotations

from collections.abc import Callable

from starlette.middleware import Middleware

from recurra.serving.edge import App, Message, Receive, Scope, Send

RAYS_OWN = "/-/"
"""Paths that Ray Serve answers: its health check and its routes."""
HEALTH = "/-/healthz"
"""HAProxy asks for it all the time; Ray answers 503 from the moment at which the replica is to leave."""


class _Adopted:
    """The application of this process; a replica is a process of its own, so there is one at most."""

    app: App | None = None
    prefix = ""
    leaving: Callable[[bool], None] | None = None


def adopt(app: App, route_prefix: str, leaving: Callable[[bool], None] | None = None) -> None:
    """Answer requests below `route_prefix` with this application from now on.

    Args:
        leaving: Told after each health check whether the replica is on its way out.
    """
    _Adopted.app = app
    _Adopted.prefix = route_prefix.rstrip("/")
    _Adopted.leaving = leaving


def middlewares() -> list[Middleware]:
    """What Ray puts around its own handling of HTTP."""
    return [Middleware(ShortWay)]


class ShortWay:
    """Hands a request to the adopted application, or to Ray."""

    def __init__(self, app: App) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        app, prefix = _Adopted.app, _Adopted.prefix
        if app is None or scope["type"] not in ("http", "websocket"):
            return await self._app(scope, receive, send)
        root: str = scope.get("root_path", "")
        path = scope["path"][len(root) :]
        if path == HEALTH and _Adopted.leaving is not None:
            return await self._app(scope, receive, _watched(send, _Adopted.leaving))
        if path.startswith(RAYS_OWN) or not (path == prefix or path.startswith(f"{prefix}/")):
            return await self._app(scope, receive, send)
        await app({**scope, "root_path": root + prefix}, receive, send)


def _watched(send: Send, leaving: Callable[[bool], None]) -> Send:
    async def watching(message: Message) -> None:
        if message["type"] == "http.response.start":
            leaving(message["status"] == 503)
        await send(message)

    return watching
