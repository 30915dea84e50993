"""A relay in front of an S3 server that behaves like a store far away: 25 ms to the first byte, 90 MB/s a connection, and
one request in a hundred answered with 503 SlowDown."""

from __future__ import annotations

import argparse
import random
import socket
import socketserver
import sys
import time
from typing import BinaryIO

FIRST_BYTE_S = 0.025
BYTES_PER_S = 90e6
BUSY_SHARE = 0.01
PIECE = 64 << 10
BUSY = b'<?xml version="1.0"?><Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>'


class Relay(socketserver.ThreadingTCPServer):
    """Forwards GET and HEAD, one upstream connection for each of a client's."""

    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, upstream: tuple[str, int]) -> None:
        super().__init__(("127.0.0.1", 0), Connection)
        self.upstream = upstream
        self.chance = random.Random(1)


class Connection(socketserver.StreamRequestHandler):
    """One client's requests, one after the other."""

    server: Relay

    def handle(self) -> None:
        with socket.create_connection(self.server.upstream) as upstream, upstream.makefile("rb") as answers:
            while head := read_head(self.rfile):
                time.sleep(FIRST_BYTE_S)
                if self.server.chance.random() < BUSY_SHARE:
                    lines = f"HTTP/1.1 503 Slow Down\r\nContent-Type: application/xml\r\nContent-Length: {len(BUSY)}\r\n\r\n"
                    self.wfile.write(lines.encode() + (b"" if head.startswith(b"HEAD") else BUSY))
                    continue
                upstream.sendall(head)
                self._pass_on(answers, has_body=not head.startswith(b"HEAD"))

    def _pass_on(self, answers: BinaryIO, has_body: bool) -> None:
        head = read_head(answers)
        self.wfile.write(head)
        left = body_length(head) if has_body else 0
        begin, sent = time.perf_counter(), 0
        while left:
            piece = answers.read(min(PIECE, left))
            if not piece:
                raise ConnectionError("The server ended in the middle of a body.")
            self.wfile.write(piece)
            left -= len(piece)
            sent += len(piece)
            time.sleep(max(0.0, begin + sent / BYTES_PER_S - time.perf_counter()))


def read_head(stream: BinaryIO) -> bytes:
    """Request or status line and headers as they came; empty at the end of the connection."""
    lines = []
    while (line := stream.readline()) not in (b"\r\n", b""):
        lines.append(line)
    return b"".join([*lines, b"\r\n"]) if lines else b""


def body_length(head: bytes) -> int:
    for line in head.splitlines():
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            return int(value)
        if name.lower() == b"transfer-encoding":
            raise ConnectionError(f"The relay takes bodies of known length only, not {line!r}.")
    return 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("host")
    parser.add_argument("port", type=int)
    options = parser.parse_args()
    with Relay((options.host, options.port)) as relay:
        print(relay.server_address[1], flush=True)
        relay.serve_forever()


if __name__ == "__main__":
    sys.exit(main())
