"""Many connections at once are taken within a few turns of the loop."""

import asyncio
import socket

import pytest
import uvloop

from recurra.serving.listeners import LISTENERS, listen_widely

CONNECTIONS = 5 * LISTENERS


class Accepted(asyncio.Protocol):
    def __init__(self, seen: list[asyncio.BaseTransport]) -> None:
        self._seen = seen

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._seen.append(transport)


async def turns_to_accept() -> int:
    """Turns of the loop until a server on a socket of ours has taken all that have connected; then it is closed."""
    loop = asyncio.get_running_loop()
    seen: list[asyncio.BaseTransport] = []
    listener = socket.create_server(("127.0.0.1", 0), backlog=2 * CONNECTIONS)
    address = listener.getsockname()
    server = await loop.create_server(lambda: Accepted(seen), sock=listener, backlog=2 * CONNECTIONS)
    clients = [socket.create_connection(address) for _ in range(CONNECTIONS)]
    turns = 0
    while len(seen) < CONNECTIONS:
        await asyncio.sleep(0)
        turns += 1
    for client, transport in zip(clients, seen, strict=True):
        client.close()
        transport.close()
    assert server.is_serving() and len(server.sockets) == 1
    server.close()
    await server.wait_closed()
    listener.close()
    await asyncio.sleep(0.01)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address)
    return turns


def test_uvloop_takes_one_connection_a_turn():
    """What `listen_widely` is for; when this fails, it may go."""
    assert uvloop.run(turns_to_accept()) >= CONNECTIONS


def test_many_connections_are_taken_in_one_turn():
    """A replica under load has few turns; and when it leaves, every listener does."""

    async def widely() -> int:
        listen_widely(asyncio.get_running_loop())
        return await turns_to_accept()

    assert uvloop.run(widely()) <= 2 * CONNECTIONS // LISTENERS + 5


def test_a_loop_that_takes_all_is_left_alone():
    """asyncio's own does."""
    loop = asyncio.new_event_loop()
    before = loop.create_server
    listen_widely(loop)
    assert loop.create_server == before
    loop.close()
