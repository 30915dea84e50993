"""Connections are taken as fast as they come, and not one in each turn of the event loop.

uvloop (libuv since 1.45) takes one connection from a listening socket each time the loop goes round. A busy replica's loop
goes round a few hundred times a second, so that a proxy which opens a thousand connections waits for seconds, health
checks among them. Several listeners on one socket take as many connections a turn.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Any

LISTENERS = 64
"""Connections that are taken in one turn of the loop."""


def listen_widely(loop: asyncio.AbstractEventLoop) -> None:
    """From now on let this loop's servers on a given socket listen `LISTENERS` times, if the loop needs that."""
    if type(loop).__module__.partition(".")[0] != "uvloop":
        return  # asyncio's own loop takes all that wait
    create_server = loop.create_server

    async def create_wide_server(
        protocol_factory: Callable[[], asyncio.BaseProtocol],
        *args: Any,
        sock: socket.socket | None = None,
        **options: Any,
    ) -> asyncio.AbstractServer:
        first = await create_server(protocol_factory, *args, sock=sock, **options)
        if sock is None:
            return first
        others = [await create_server(protocol_factory, sock=sock.dup(), **options) for _ in range(LISTENERS - 1)]
        return _WideServer(first, others)

    loop.create_server = create_wide_server  # type: ignore[assignment]


class _WideServer(asyncio.AbstractServer):
    """Servers on one socket that open and close together."""

    def __init__(self, first: asyncio.Server, others: list[asyncio.Server]) -> None:
        self._first = first
        self._all = [first, *others]

    @property
    def sockets(self) -> Any:
        return self._first.sockets

    def get_loop(self) -> asyncio.AbstractEventLoop:
        return self._first.get_loop()

    def is_serving(self) -> bool:
        return self._first.is_serving()

    async def start_serving(self) -> None:
        await asyncio.gather(*(server.start_serving() for server in self._all))

    async def serve_forever(self) -> None:
        await self._first.serve_forever()

    def close(self) -> None:
        for server in self._all:
            server.close()

    async def wait_closed(self) -> None:
        await asyncio.gather(*(server.wait_closed() for server in self._all))
