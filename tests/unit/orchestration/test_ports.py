"""Ports: several clusters on one host never want the same one."""

from __future__ import annotations

import socket
from dataclasses import asdict

import pytest

from recurra.errors import ClusterError
from recurra.orchestration import ports
from recurra.orchestration.ports import REPLICA_PORTS, ClusterPorts, free_block, free_ports


@pytest.mark.parametrize("attempt", range(20))
def test_the_ports_of_a_cluster_are_distinct_and_in_range(attempt: int) -> None:
    """Ray starts with two servers on one port and fails much later, so it must not come to that."""
    chosen = ClusterPorts.choose()
    blocks = [range(first, first + REPLICA_PORTS) for first in (chosen.replica_http, chosen.replica_grpc)]
    single = [port for name, port in asdict(chosen).items() if not name.startswith("replica")]
    assert not set(blocks[0]) & set(blocks[1])
    assert not set(single) & {*blocks[0], *blocks[1]}
    assert len(set(single)) == len(single)
    assert all(ports.FIRST <= port <= ports.LAST for port in asdict(chosen).values())


def test_the_http_port_can_be_asked_for() -> None:
    """A service wants a port that its users know."""
    assert ClusterPorts.choose(http=8123).http == 8123


def test_a_taken_port_is_not_given(monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody else's server has it."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        monkeypatch.setattr(ports, "FIRST", port)
        monkeypatch.setattr(ports, "LAST", port)
        with pytest.raises(ClusterError, match="1 are needed"):
            free_ports(1)


def test_a_block_is_free_as_a_whole() -> None:
    """Replicas take ports from it one after the other without asking again."""
    start = free_block(REPLICA_PORTS)
    for port in (start, start + REPLICA_PORTS - 1):
        with socket.socket() as server:
            server.bind(("127.0.0.1", port))
