"""Closed-loop clients for what takes longer than one answer: streams of server-sent events, and sessions with think time."""

from __future__ import annotations

import heapq
import random
import re
import select
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from serve_client import Connection, Report

TEXT = re.compile(rb'"text": ?"([a-z ]*)"')
END = b"\r\n0\r\n\r\n"
"""The last chunk of a chunked answer."""
PATIENCE_S = 60.0


@dataclass
class StreamReport:
    """What a run of `stream` saw after its warm-up."""

    seconds: float = 0.0
    tokens: int = 0
    first_s: list[float] = field(default_factory=list)
    """From sending to the first token."""
    finished: int = 0
    failures: list[str] = field(default_factory=list)

    @property
    def rate(self) -> float:
        """Tokens in a second."""
        return self.tokens / self.seconds


class _Stream:
    def __init__(self, host: str, port: int) -> None:
        self._address = host, port
        self.socket = socket.socket()
        self.connect()
        self.data = bytearray()
        self.sent_s = 0.0
        self.wanted = 0
        self.begun = False
        self.counted = 0
        """Tokens that came before the clock started."""

    def connect(self) -> None:
        """Anew: a socket that is closed has left every poll."""
        self.socket.close()
        self.socket = socket.create_connection(self._address)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def send(self, request: bytes, wanted: int) -> None:
        self.data.clear()
        self.begun, self.wanted, self.counted = False, wanted, 0
        self.sent_s = time.perf_counter()
        self.socket.sendall(request)

    def tokens(self) -> int:
        return sum(map(len, TEXT.findall(self.data)))


def stream(
    host: str, port: int, requests: Iterator[tuple[bytes, int]], clients: int, warm_s: float, seconds: float
) -> StreamReport:
    """Each client begins the next stream when its last one has ended.

    Args:
        requests: Each with the number of tokens that its answer must have.
        warm_s: What comes earlier is not counted.
        seconds: 0 = each client has one stream, and everything is counted.
    """
    report = StreamReport()
    poll = select.epoll()
    open_streams: dict[int, _Stream] = {}
    for _ in range(clients):
        one = _Stream(host, port)
        open_streams[one.socket.fileno()] = one
        poll.register(one.socket.fileno(), select.EPOLLIN)
    begin = time.perf_counter()
    for one in open_streams.values():
        one.send(*next(requests))
    started = begin + warm_s
    end = started + (seconds or PATIENCE_S)
    running = warm_s == 0
    left = clients
    while left and (now := time.perf_counter()) < end:
        if not running and now >= started:
            running = True
            for one in open_streams.values():
                one.counted = one.tokens()
        for number, _ in poll.poll((end if running else started) - now):
            one = open_streams[number]
            data = one.socket.recv(1 << 16)
            now = time.perf_counter()
            one.data += data
            if not one.begun and b'"text"' in one.data:
                one.begun = True
                if running:
                    report.first_s.append(now - one.sent_s)
            if data and not one.data.endswith(END):
                continue
            got = one.tokens()
            if got != one.wanted:
                report.failures.append(f"{got} tokens for {one.wanted}: {bytes(one.data[-200:])!r}")
            if not data:  # closed by the server
                del open_streams[number]
                one.connect()
                open_streams[one.socket.fileno()] = one
                poll.register(one.socket.fileno(), select.EPOLLIN)
            if running:
                report.tokens += got - one.counted
                report.finished += 1
            if seconds:
                one.send(*next(requests))
            else:
                left -= 1
                poll.unregister(one.socket.fileno())
    if left and not seconds:
        report.failures.append(f"{left} streams had not ended after {PATIENCE_S:g} s")
    report.seconds = time.perf_counter() - started
    for one in open_streams.values():
        if seconds:
            report.tokens += one.tokens() - one.counted
        one.socket.close()
    return report


def step(
    host: str, port: int, requests: list[Iterator[bytes]], think_s: float, warm_s: float, seconds: float
) -> Report:
    """Sessions, each on its own connection, that wait for an exponentially distributed time between answer and next step.

    Args:
        requests: Of each session one after the other.
        think_s: Mean of that time.
    """
    report = Report()
    dice = random.Random(1)
    poll = select.epoll()
    sessions: dict[int, tuple[Connection, Iterator[bytes]]] = {}
    begin = time.perf_counter()
    due: list[tuple[float, int]] = []
    for one in requests:
        connection = Connection(host, port)
        number = connection.socket.fileno()
        sessions[number] = connection, one
        poll.register(number, select.EPOLLIN)
        due.append((begin + dice.expovariate(1 / think_s), number))
    heapq.heapify(due)
    end = begin + warm_s + seconds
    while (now := time.perf_counter()) < end:
        while due and due[0][0] <= now:
            connection, following = sessions[heapq.heappop(due)[1]]
            connection.send(next(following))
        for number, _ in poll.poll(max(0.0, (min(end, due[0][0]) if due else end) - now)):
            connection = sessions[number][0]
            status = connection.receive()
            if status is None:
                continue
            now = time.perf_counter()
            if status != 200:
                name = str(status or "closed")
                report.failures[name] = report.failures.get(name, 0) + 1
            elif now >= begin + warm_s:
                report.latencies_s.append(now - connection.sent_s)
            if status:
                heapq.heappush(due, (now + dice.expovariate(1 / think_s), number))
            else:
                poll.unregister(number)
    report.seconds = time.perf_counter() - begin - warm_s
    for connection, _ in sessions.values():
        connection.socket.close()
    return report
