"""Ports for a SeaweedFS of our own, and how those who choose ports keep out of each other's way."""

from __future__ import annotations

import fcntl
import os
import random
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True)
class Ports:
    """Every port that SeaweedFS listens on; all on 127.0.0.1."""

    s3: int
    s3_grpc: int
    master: int
    master_grpc: int
    volume: int
    volume_grpc: int
    filer: int
    filer_grpc: int
    admin: int
    """Its gRPC twin is this + 10000, which no flag changes."""
    metrics: int

    @classmethod
    def free(cls) -> Ports:
        """Ports that nobody listens on now, below the range from which the kernel takes outgoing ones."""
        chosen: list[int] = []
        while len(chosen) < 10:
            port = random.randrange(20000, 22700)
            if port not in chosen and _is_free(port) and _is_free(port + 10000):
                chosen.append(port)
        return cls(*chosen)

    def listening(self) -> tuple[int, ...]:
        return (*asdict(self).values(), self.admin + 10000)

    def all_free(self) -> bool:
        return all(_is_free(port) for port in self.listening())


@contextmanager
def claimed(name: str, *, wait: bool) -> Iterator[bool]:
    """Have for oneself, inside the block, what one process of this user may have at a time: ports that were chosen and that
    nobody listens on yet. Gives whether it is ours, which with `wait` it is; it ends with the process, too."""
    folder = Path(tempfile.gettempdir()) / f"recurra-claims-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    with (folder / name).open("ab") as file:  # nothing is emptied, should somebody else have put a link there
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
        else:
            yield True


def _is_free(port: int) -> bool:
    with socket.socket() as candidate:
        candidate.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port that a dead server left is free
        try:
            candidate.bind(("", port))  # SeaweedFS looks at all addresses, too
        except OSError:
            return False
    return True
