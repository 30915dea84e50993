"""A proxy in front of the real server that misbehaves as told, request by request."""

from __future__ import annotations

import http.client
import threading
from collections import deque
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

BUSY = b"<Error><Code>SlowDown</Code><Message>Reduce your request rate.</Message></Error>"


@dataclass(frozen=True)
class Fault:
    """What happens to one request; the default lets it through."""

    busy: bool = False
    """Answer 503 and do not ask the server."""
    dropped: bool = False
    """Close the connection and do not ask the server."""
    answer_lost: bool = False
    """Ask the server, then close the connection without its answer."""
    cut_after: int | None = None
    """Send that many bytes of the body, then close the connection."""
    stalled: bool = False
    """Ask the server, but say nothing until the test has ended."""
    flipped: bool = False
    """Turn one bit of the body."""
    approved: bool = False
    """Answer 200 where the server said 412, as one does that ignores `If-None-Match`."""


@dataclass
class FaultyProxy:
    """Requests go through to the server, except those that `faults` has something in store for."""

    upstream: str
    faults: deque[Fault] = field(default_factory=deque)
    seen: list[tuple[str, str | None]] = field(default_factory=list)
    """Method and Range of every request."""
    always: Fault = Fault()
    """For requests that come after the list has been used up."""
    ended: threading.Event = field(default_factory=threading.Event)
    port: int = 0

    def script(self, *faults: Fault) -> None:
        """Forget what was seen, and let these happen to the next requests."""
        self.faults.clear()
        self.faults.extend(faults)
        self.seen.clear()


def listen(proxy: FaultyProxy) -> ThreadingHTTPServer:
    """A listener on a free port, which `proxy.port` then names."""
    listener = ThreadingHTTPServer(("127.0.0.1", 0), handler_for(proxy))
    listener.daemon_threads = True
    listener.block_on_close = False
    proxy.port = listener.server_port
    return listener


def handler_for(proxy: FaultyProxy) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_one_request(self) -> None:
            try:
                super().handle_one_request()
            except ConnectionError:
                self.close_connection = True

        def forward(self) -> None:
            fault = proxy.faults.popleft() if proxy.faults else proxy.always
            proxy.seen.append((self.command, self.headers["Range"]))
            body = self.rfile.read(int(self.headers["Content-Length"] or 0))
            if fault.busy:
                return self.reply(503, [("Content-Type", "application/xml")], BUSY)
            if fault.dropped:
                self.close_connection = True
                return None
            headers = {name: value for name, value in self.headers.items() if name.lower() != "expect"}
            upstream = http.client.HTTPConnection(proxy.upstream, timeout=30)
            upstream.request(self.command, self.path, body, headers)
            answer = upstream.getresponse()
            content = answer.read()
            upstream.close()
            if fault.stalled:
                proxy.ended.wait(30)
            if fault.answer_lost or fault.stalled:
                self.close_connection = True
                return None
            kept = [(name, value) for name, value in answer.getheaders() if name.lower() != "transfer-encoding"]
            if fault.flipped and content:
                content = content[:-1] + bytes([content[-1] ^ 1])
            if fault.approved and answer.status == 412:
                return self.reply(200, [("ETag", '"0"')], b"")
            return self.reply(answer.status, kept, content, fault.cut_after)

        do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = forward

        def reply(
            self, status: int, headers: list[tuple[str, str]], content: bytes, cut_after: int | None = None
        ) -> None:
            self.send_response_only(status)
            if not any(name.lower() == "content-length" for name, _ in headers):
                headers = [*headers, ("Content-Length", str(len(content)))]
            for name, value in headers:
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content[:cut_after])
            self.close_connection = self.close_connection or cut_after is not None

        def log_message(self, *args: object) -> None:
            pass

    return Handler
