"""Ports for a SeaweedFS of our own."""

from __future__ import annotations

import random
import socket
from dataclasses import asdict, dataclass


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


def _is_free(port: int) -> bool:
    with socket.socket() as candidate:
        candidate.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port that a dead server left is free
        try:
            candidate.bind(("", port))  # SeaweedFS looks at all addresses, too
        except OSError:
            return False
    return True
