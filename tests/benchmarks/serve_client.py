"""A closed-loop HTTP client that costs little: one thread, epoll, requests made before the clock starts."""

from __future__ import annotations

import heapq
import random
import select
import socket
import time
from collections import deque
from dataclasses import dataclass, field


@dataclass
class Report:
    """What a run of the client saw."""

    seconds: float = 0.0
    latencies_s: list[float] = field(default_factory=list)
    """Of answers with status 200."""
    failures: dict[str, int] = field(default_factory=dict)
    """Status, or what went wrong, -> how often."""
    refusals_s: list[float] = field(default_factory=list)
    """How long answers with status 429 or 503 took."""
    sent: int = 0
    """Requests of an open loop."""
    early: Report | None = None
    """What was before it counted."""

    @property
    def rate(self) -> float:
        """Answers with status 200 in a second."""
        return len(self.latencies_s) / self.seconds

    @property
    def rate_from_start(self) -> float:
        """The same, with what came early."""
        early = self.early or Report()
        return (len(early.latencies_s) + len(self.latencies_s)) / (early.seconds + self.seconds)

    def percentile_ms(self, percent: float) -> float:
        return percentile_ms(self.latencies_s, percent)


def percentile_ms(latencies_s: list[float], percent: float) -> float:
    ordered = sorted(latencies_s)
    return 1e3 * ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))] if ordered else float("nan")


def request_bytes(host: str, port: int, path: str, body: bytes) -> bytes:
    """A whole HTTP/1.1 request."""
    head = f"POST {path} HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def run(
    host: str,
    port: int,
    requests: list[bytes],
    clients: int,
    seconds: float,
    *,
    refused_pause_s: float = 0.0,
    early_s: float = 0.0,
) -> Report:
    """Each client sends the next request when it has the answer to its last one.

    Args:
        refused_pause_s: How long a client that was answered with 429 or 503 rests at least, and at most twice as long, as
            `recurra.serving.client` does.
        early_s: Seconds that come first and are counted apart: all clients at once are a burst, which is not what follows it.
    """
    report = Report()
    dice = random.Random(0)
    resting: list[tuple[float, int, Connection]] = []
    poll = select.epoll()
    connections = {}
    turn = 0
    begin = time.perf_counter()
    for _ in range(clients):
        connection = Connection(host, port)
        connections[connection.socket.fileno()] = connection
        poll.register(connection.socket.fileno(), select.EPOLLIN)
        connection.send(requests[turn % len(requests)])
        turn += 1
    end = begin + early_s + seconds
    while (now := time.perf_counter()) < end:
        if report.early is None and early_s <= now - begin:
            report.seconds = now - begin
            report, begin = Report(early=report), now
        while resting and resting[0][0] <= now:
            rested = heapq.heappop(resting)[2]
            if rested.socket.fileno() >= 0:  # else it was closed meanwhile, and another one has taken its place
                rested.send(requests[turn % len(requests)])
                turn += 1
        for number, _ in poll.poll(max(0.0, (min(end, resting[0][0]) if resting else end) - now)):
            connection = connections[number]
            status = connection.receive()
            if status is None:
                continue
            if status == 200:
                report.latencies_s.append(time.perf_counter() - connection.sent_s)
            else:
                name = str(status or "closed")
                report.failures[name] = report.failures.get(name, 0) + 1
            if status in (429, 503):
                report.refusals_s.append(time.perf_counter() - connection.sent_s)
                if refused_pause_s:
                    rested_s = time.perf_counter() + refused_pause_s * dice.uniform(1, 2)
                    heapq.heappush(resting, (rested_s, turn, connection))
                    turn += 1
                    continue
            if status == 0:  # such as HAProxy's when it reads a new configuration: come back, and count it
                poll.unregister(number)
                connection.socket.close()
                del connections[number]
                connection = Connection(host, port)
                connections[connection.socket.fileno()] = connection
                poll.register(connection.socket.fileno(), select.EPOLLIN)
            connection.send(requests[turn % len(requests)])
            turn += 1
    report.seconds = time.perf_counter() - begin
    for connection in connections.values():
        connection.socket.close()
    return report


def run_open(host: str, port: int, requests: list[bytes], connections: int, seconds: float, rate: float) -> Report:
    """Requests at a rate, whatever became of those before; each over a connection that waits for no answer.

    When no connection is free, requests wait for one; a request's time counts from when it is sent.
    """
    report = Report()
    poll = select.epoll()
    open_ = {}
    for _ in range(connections):
        connection = Connection(host, port)
        open_[connection.socket.fileno()] = connection
        poll.register(connection.socket.fileno(), select.EPOLLIN)
    free = deque(open_.values())
    begin = time.perf_counter()
    while (elapsed := time.perf_counter() - begin) < seconds:
        for _ in range(min(len(free), int(elapsed * rate) - report.sent)):
            free.popleft().send(requests[report.sent % len(requests)])
            report.sent += 1
        for number, _ in poll.poll(0.0005):
            connection = open_[number]
            status = connection.receive()
            if status is None:
                continue
            took_s = time.perf_counter() - connection.sent_s
            if status == 200:
                report.latencies_s.append(took_s)
            else:
                name = str(status or "closed")
                report.failures[name] = report.failures.get(name, 0) + 1
            if status in (429, 503):
                report.refusals_s.append(took_s)
            if status == 0:
                poll.unregister(number)
                connection.socket.close()
                del open_[number]
                connection = Connection(host, port)
                open_[connection.socket.fileno()] = connection
                poll.register(connection.socket.fileno(), select.EPOLLIN)
            free.append(connection)
    report.seconds = time.perf_counter() - begin
    for connection in open_.values():
        connection.socket.close()
    return report


class Connection:
    """One at a time: a request, and its answer with a content length."""

    def __init__(self, host: str, port: int) -> None:
        self.socket = socket.create_connection((host, port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sent_s = 0.0
        self._buffer = b""

    def send(self, data: bytes) -> None:
        self.sent_s = time.perf_counter()
        self.socket.sendall(data)

    def receive(self) -> int | None:
        """The status once the answer is complete, 0 when the server has closed, None before."""
        try:
            data = self.socket.recv(65536)
        except ConnectionResetError:
            return 0
        if not data:
            return 0
        self._buffer += data
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            return None
        head = self._buffer[:end].lower()
        place = head.find(b"content-length:")
        length = int(head[place + 15 :].split(b"\r\n", 1)[0])
        if len(self._buffer) < end + 4 + length:
            return None
        self._buffer = self._buffer[end + 4 + length :]
        return int(head[9:12])
