"""Sequences of one request, awaited on an event loop: all results at once, or tokens as they come."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

from recurra.errors import RequestError
from recurra.serving.edge import Receive
from recurra.serving.engine import Engine
from recurra.serving.work import Event, Result, Sequence, Token

PATIENCE_S = 0.2

FLUSH_S = 0.01
"""A stream sends at most one chunk in so many seconds, with all the tokens that have come meanwhile; the first at once."""
CHUNKS_S = 2000
"""All streams together send about so many chunks a second at most: with many of them each waits longer between two,"""
SLOWEST_S = 0.1
"""but no longer than this: each chunk is a message through event loop, HAProxy and client, however few tokens it has."""


async def disconnected(receive: Receive) -> None:
    """Returns when the client has gone; the request's body must have been read."""
    while (await receive())["type"] != "http.disconnect":
        pass


def client_gone() -> RequestError:
    """What nobody reads but the metrics."""
    return RequestError("The client closed the connection before the answer was ready.", status=499, code="client_gone")


def unheard(sequence: Sequence, event: Event) -> None:
    """The listener of a sequence that no ticket has taken yet."""
    raise AssertionError("The sequence was submitted without a ticket.")


async def run(engine: Engine, sequences: list[Sequence], receive: Receive | None = None) -> list[Result]:
    """Results in the order of the sequences. If the caller is cancelled, so are they.

    Args:
        receive: The request's ASGI channel: after `PATIENCE_S` it is watched for the client's leaving. Short requests,
            which are nearly all, never pay for that.

    Raises:
        RequestError: Of the first sequence that failed, the others of this request are given up; or 499.
    """
    ticket = _Gathering(sequences)
    engine.submit(sequences)
    watch = asyncio.get_running_loop().call_later(PATIENCE_S, ticket.watch, receive) if receive is not None else None
    try:
        await ticket.future
    except BaseException:
        engine.cancel(sequences)
        raise
    finally:
        if watch is not None:
            watch.cancel()
            ticket.unwatch()
    return [ticket.results[sequence] for sequence in sequences]


async def stream(engine: Engine, sequences: list[Sequence]) -> AsyncGenerator[list[tuple[int, Event]], None]:
    """Events as they come, with the index of the sequence; several at once where the reader is slower than the engine.

    Ends after every sequence has ended. If the reader goes away (close the iterator), the sequences are cancelled.
    The first list comes at once, and so does the last; those between are paced by how many sequences are being computed.
    """
    loop = asyncio.get_running_loop()
    ticket = _Streaming(sequences, loop)
    engine.submit(sequences)
    sent_s = float("-inf")
    try:
        while ticket.open or ticket.events:
            if not ticket.events:
                await ticket.wait(None)
            if (delay_s := sent_s + _pause_s(engine.load.busy) - loop.time()) > 0 and ticket.open:
                await ticket.wait(delay_s)
            sent_s = loop.time()
            yield ticket.take()
    finally:
        if ticket.open:
            engine.cancel(sequences)


def _pause_s(busy: int) -> float:
    return min(SLOWEST_S, max(FLUSH_S, busy / CHUNKS_S))


class _Gathering:
    def __init__(self, sequences: list[Sequence]) -> None:
        self.future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.results: dict[Sequence, Result] = {}
        self._open = len(sequences)
        self._watching: asyncio.Task[None] | None = None
        for sequence in sequences:
            sequence.listener = self._hear

    def watch(self, receive: Receive) -> None:
        """Fail once the client has gone."""
        self._watching = asyncio.get_running_loop().create_task(self._fail_when_gone(receive))

    def unwatch(self) -> None:
        if self._watching is not None:
            self._watching.cancel()

    async def _fail_when_gone(self, receive: Receive) -> None:
        await disconnected(receive)
        if not self.future.done():
            self.future.set_exception(client_gone())

    def _hear(self, sequence: Sequence, event: Event) -> None:
        if self.future.done():  # its client is gone, or another sequence of the request has failed
            return
        if isinstance(event, RequestError):
            self.future.set_exception(event)
        elif isinstance(event, Result):
            self.results[sequence] = event
            if len(self.results) == self._open:
                self.future.set_result(None)


class _Streaming:
    def __init__(self, sequences: list[Sequence], loop: asyncio.AbstractEventLoop) -> None:
        self.events: list[tuple[int, Event]] = []
        self.open = len(sequences)
        self._loop = loop
        self._wake: asyncio.Future[None] | None = None
        self._pausing = False
        self._index = {sequence: index for index, sequence in enumerate(sequences)}
        for sequence in sequences:
            sequence.listener = self._hear

    async def wait(self, pause_s: float | None) -> None:
        """Until the next event; or, with a pause, until it is over or every sequence has ended."""
        self._wake = self._loop.create_future()
        self._pausing = pause_s is not None
        timer = self._loop.call_later(pause_s, self._rouse) if pause_s is not None else None
        try:
            await self._wake
        finally:
            if timer is not None:
                timer.cancel()

    def take(self) -> list[tuple[int, Event]]:
        events, self.events = self.events, []
        return events

    def _hear(self, sequence: Sequence, event: Event) -> None:
        self.events.append((self._index[sequence], event))
        if not isinstance(event, Token):
            self.open -= 1
        if not self._pausing or not self.open:
            self._rouse()

    def _rouse(self) -> None:
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)
