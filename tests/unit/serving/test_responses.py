"""Answers whose client has gone."""

import asyncio

import pytest
from starlette.requests import Request

from recurra.errors import RequestError
from recurra.serving.responses import EventStream

SCOPE = {"type": "http", "method": "POST", "path": "/v1/completions", "headers": []}


def test_a_client_that_leaves_before_the_first_event_ends_the_work():
    """The generator still runs when the client is found gone: closing it then raised, and the request was counted as ours
    to blame."""
    ended = []

    async def receive():
        return {"type": "http.disconnect"}

    async def events():
        try:
            await asyncio.sleep(60)
            yield b""
        finally:
            ended.append(True)

    async def main():
        source = events()
        with pytest.raises(RequestError, match="closed the connection") as caught:
            await EventStream.open(Request(SCOPE, receive), source)
        assert (caught.value.status, ended) == (499, [True])
        assert await anext(source, None) is None

    asyncio.run(main())


def test_a_stream_that_is_refused_says_so_with_its_own_status():
    """Nothing has been sent before the first event, so the error can still be the answer."""

    async def receive():
        await asyncio.sleep(60)

    async def events():
        raise RequestError("Too many.", status=429, code="queue_full")
        yield b""

    async def main():
        with pytest.raises(RequestError, match="Too many"):
            await EventStream.open(Request(SCOPE, receive), events())

    asyncio.run(main())
