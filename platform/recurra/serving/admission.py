"""Refuses what would wait for too long, before it is parsed. A body that is slow to come is nobody's place in the line.

HAProxy hears of it by a header of answers and refuses by itself for a moment, which costs next to nothing (config/haproxy.py).

Where an overloaded replica's requests wait differs: in the engine's queue when the model is slow, on the event loop, before
and after the engine, when it is quick. So what counts here is requests from their arrival until their answer begins.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from recurra.errors import RequestError
from recurra.serving.edge import BUSY, CROWDED, ENDPOINT, App, Message, Receive, Scope, Send

ADMITTED = frozenset({"predict", "completions", "timeseries", "infer", "session_step", "session_stream"})
"""Endpoints whose work is the engine's; health, metrics and models are answered whatever the load."""
CALM_S = 5.0
"""After so long without too many requests, what comes next may be a burst again."""
NEARLY = 0.7
"""Of the limit: from there on HAProxy is told, so that hardly anything is left to be refused here."""
WINDOW_S = 0.25
"""Over which the pace of answers is measured."""
FADING = 0.9
"""What is left of the pace before, from window to window: a pause because few came is no reason to take fewer."""


class Crowd:
    """Requests that have no answer yet, and how many there may be: those that are answered within `max_wait_s`.

    A burst may exceed that for `max_wait_s`; the queue of the engine is its limit.

    Args:
        least: So many may always be here: what the engine computes at once, and as many that wait for their turn.
        max_wait_s: See `ServeConfig.max_wait_s`.
        clock: Seconds, monotonic.
    """

    def __init__(self, least: int, max_wait_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._least = least
        self._max_wait_s = max_wait_s
        self._clock = clock
        self.count = 0
        self._pace = 0.0
        self._answers = 0
        self._window_s = clock()
        self._crowded_s: float | None = None
        """Since when there are too many, with pauses shorter than `CALM_S`."""
        self._last_crowded_s = 0.0

    @property
    def limit(self) -> float:
        """Requests beyond which there are too many."""
        return max(self._least, self._pace * self._max_wait_s)

    def enter(self) -> bool:
        """Count a request that has come; False = refuse it, it is not counted."""
        if self.count >= self.limit and not self._is_burst():
            return False
        self.count += 1
        return True

    def leave(self, answered: bool) -> None:
        """Its answer begins, or it has failed."""
        self.count -= 1
        self._answers += answered
        elapsed_s = self._clock() - self._window_s
        if elapsed_s >= WINDOW_S:
            self._open_window(max(self._answers / elapsed_s, FADING * self._pace))

    def is_busy(self) -> bool:
        """Whether those that come next had better be refused before they are here: nearly too many are, and it is no burst."""
        now = self._clock()
        if self._crowded_s is None or self.count < NEARLY * self.limit:
            return False
        if now - self._last_crowded_s > CALM_S or now - self._crowded_s < self._max_wait_s:
            return False
        self._last_crowded_s = now
        return True

    def _is_burst(self) -> bool:
        now = self._clock()
        if self._crowded_s is None or now - self._last_crowded_s > CALM_S:
            self._crowded_s = now
            self._open_window(0.0)  # the pace before says nothing of what can be done
        self._last_crowded_s = now
        return now - self._crowded_s < self._max_wait_s

    def _open_window(self, pace: float) -> None:
        self._pace, self._answers, self._window_s = pace, 0, self._clock()


class Admitted:
    """Lets requests in while there is room.

    Args:
        app: What is behind.
        crowd: Requests here.
        check_room: Of the engine, which raises 429 or 503.
    """

    def __init__(self, app: App, crowd: Crowd, check_room: Callable[[], None]) -> None:
        self._app = app
        self._crowd = crowd
        self._check_room = check_room

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope.get(ENDPOINT) not in ADMITTED or scope["method"] != "POST":
            return await self._app(scope, receive, send)
        try:
            self._check_room()
            if not self._crowd.enter():
                raise self._crowded()
        except RequestError as exc:
            scope[CROWDED] = exc.status == 429
            raise
        here = True

        async def noting_send(message: Message) -> None:
            nonlocal here
            if here:
                here = False
                self._crowd.leave(answered=True)
                if self._crowd.is_busy():
                    message["headers"] = [*message.get("headers", ()), BUSY]
            await send(message)

        try:
            await self._app(scope, receive, noting_send)
        finally:
            if here:
                self._crowd.leave(answered=False)

    def _crowded(self) -> RequestError:
        return RequestError(
            f"{self._crowd.count} requests have no answer yet, more than this replica answers within serve.max_wait_s. "
            "Try again after the time in Retry-After.",
            status=429,
            code="queue_full",
            retry_after_s=1.0,
        )
