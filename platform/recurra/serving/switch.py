"""Requests outside of sessions: which of the deployed bundles answers each, and how it did."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping

from recurra.errors import RecurraError
from recurra.serving.edge import BODY, ENDPOINT, ERROR_CODE, App, Message, Receive, Scope, Send
from recurra.serving.lineup import Desk, Lineup
from recurra.serving.session_desks import Heard, is_failure

SPLIT = frozenset({"predict", "completions", "timeseries", "infer"})
KEY_HEADERS = (b"x-session-id", b"x-request-id")
"""Requests with the same value go to the same bundle; without one, each by itself."""
DIGEST_HEADER = b"x-recurra-digest"
FAILED_STREAMS = frozenset({"internal_error", "model_failed", "output_not_finite"})
_VERSION = re.compile(rb"(?:@|/versions/)([0-9a-f]{4,64})(?![0-9a-f])")


class Switch:
    """Hands a request to the application of one bundle, and says in a header which one it was.

    Args:
        lineup: The bundles.
        apps: The application of each deployed one, by digest.
        heard: Told of each request; see `CanaryGuard.hear`.
    """

    def __init__(self, lineup: Lineup, apps: Mapping[str, App], heard: Heard) -> None:
        self._lineup = lineup
        self._apps = apps
        self._heard = heard

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        endpoint = scope.get(ENDPOINT)
        plain = endpoint == "predict" and self._lineup.candidate is None  # the hot path; its body has the digest
        if plain or endpoint not in SPLIT:
            return await self._apps[self._lineup.stable.digest](scope, receive, send)
        desk = self._chosen(scope)
        header = (DIGEST_HEADER, desk.digest.encode())
        begin = time.perf_counter()
        status, streams = 500, False

        async def noting_send(message: Message) -> None:
            nonlocal status, streams
            if message["type"] == "http.response.start":
                status = message["status"]
                streams = any(value.startswith(b"text/event-stream") for _, value in message["headers"])
                message["headers"] = [*message["headers"], header]
            await send(message)

        try:
            await self._apps[desk.digest](scope, receive, noting_send)
        except Exception as exc:
            failed = not isinstance(exc, RecurraError) or is_failure(exc.status)
            self._heard(desk.digest, None, failed)
            raise
        if b'"sequence_id"' in scope[BODY] and endpoint == "infer":
            return  # a session's: it has been heard of
        failed = is_failure(status) or (streams and scope.get(ERROR_CODE) in FAILED_STREAMS)
        self._heard(desk.digest, None if failed or streams else time.perf_counter() - begin, failed)

    def _chosen(self, scope: Scope) -> Desk:
        if len(deployed := self._lineup.deployed) == 1:
            return deployed[0]
        for version in _VERSION.findall(scope["path"].encode() + scope[BODY]):
            for desk in deployed:
                if desk.digest.startswith(version.decode()):
                    return desk
        headers = dict(scope["headers"])
        key = next((headers[name] for name in KEY_HEADERS if name in headers), None)
        return self._lineup.choose(None if key is None else key.decode("latin-1"))
