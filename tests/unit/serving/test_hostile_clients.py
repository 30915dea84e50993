"""Clients that send slowly, or without end: they are cut off, and nobody else notices."""

import socket
import time

import pytest
from tests.unit.serving.conftest import classifier_service

from recurra.serving import edge

PATIENCE_S = 60.0
HEAD = b"POST /v1/predict/clf HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
SLOW_S = 0.5
USUAL_S = edge.BODY_TIMEOUT_S
"""Nobody waits so long here, on a busy machine neither."""


@pytest.fixture(scope="module")
def server(serve):
    """A server that waits for a body for half a second."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(edge, "BODY_TIMEOUT_S", SLOW_S)
        yield serve(classifier_service(max_request_bytes=4096))


def connected(server) -> socket.socket:
    host, _, port = server.url.removeprefix("http://").partition(":")
    return socket.create_connection((host, int(port)), timeout=PATIENCE_S)


def rest_of(connection: socket.socket) -> bytes:
    """All that comes until the server closes."""
    received = b""
    try:
        while data := connection.recv(65536):
            received += data
    except ConnectionResetError:
        pass  # it was still being sent to
    return received


@pytest.mark.parametrize("sent", [b"", b'{"inst'], ids=["nothing", "a part"])
def test_a_body_that_does_not_come_is_not_waited_for(server, sent):
    """The head alone must not hold a connection for ever, and neither must the beginning of a body."""
    with connected(server) as connection:
        connection.sendall(HEAD + b"Content-Length: 100\r\n\r\n" + sent)
        begin = time.monotonic()
        received = rest_of(connection)

    assert received.startswith(b"HTTP/1.1 408 ") and b"body_timeout" in received
    assert time.monotonic() - begin < USUAL_S


def test_a_body_that_comes_byte_by_byte_is_cut(server):
    """Each byte is no new beginning."""
    with connected(server) as connection:
        connection.sendall(HEAD + b"Content-Length: 1000\r\n\r\n")
        until = time.monotonic() + USUAL_S
        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            while time.monotonic() < until:
                connection.sendall(b" ")
                time.sleep(0.02)


def test_a_body_that_says_it_is_huge_is_refused_unread(server):
    """And the connection ends with the answer: ten gigabytes are not read only to be thrown away."""
    with connected(server) as connection:
        connection.sendall(HEAD + b"Content-Length: 10000000000\r\n\r\n")
        received = rest_of(connection)

    assert received.startswith(b"HTTP/1.1 413 ") and b"too_large" in received
    assert b"connection: close" in received


def test_a_body_without_an_end_is_cut(server):
    """It does not say how long it is."""
    sent = 0
    with connected(server) as connection:
        connection.sendall(HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
        try:
            while sent < 64 << 20:
                connection.sendall(b"1000\r\n" + b" " * 0x1000 + b"\r\n")
                sent += 0x1000
        except (BrokenPipeError, ConnectionResetError):
            pass

    assert sent < 32 << 20


def test_slow_clients_take_nothing_from_the_others(server):
    """They hold a socket each, and neither a slot nor a place in the line."""
    slow = [connected(server) for _ in range(100)]
    try:
        for number, connection in enumerate(slow):
            connection.sendall(HEAD[: 30 + number % 10] if number % 2 else HEAD + b"Content-Length: 50\r\n\r\n{")
        answer = server.post("/v1/predict/clf", instances=[{"text": "a"}])
        healthy = server.client.get("/health/ready")
    finally:
        for connection in slow:
            connection.close()

    assert (answer.status_code, healthy.status_code) == (200, 200)
    assert server.service.engine.idle
