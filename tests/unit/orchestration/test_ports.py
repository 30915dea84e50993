"""Ports: several clusters on one host never want the same one."""

from __future__ import annotations

import socket
from dataclasses import asdict

import pytest

from recurra.errors import ClusterError
from recurra.orchestration import ports
from recurra.orchestration.ports import BLOCK_PORTS, REPLICA_PORTS, ClusterPorts


def every_port(chosen: ClusterPorts) -> list[int]:
    """Those of the head, of all further nodes and of all replicas."""
    named = [port for name, port in asdict(chosen).items() if not name.startswith("replica")]
    nodes = [port for number in range(1, 8) for port in chosen.of_node(number)]
    replicas = [first + n for first in (chosen.replica_http, chosen.replica_grpc) for n in range(REPLICA_PORTS)]
    return [*named, *nodes, *replicas]


@pytest.fixture
def two_blocks(monkeypatch: pytest.MonkeyPatch) -> int:
    """There are no more, and both are free; the first port."""
    starts = range(ports.FIRST, ports.LAST + 2 - 2 * BLOCK_PORTS, BLOCK_PORTS)
    first = next(start for start in starts if all(map(ports.is_free, range(start, start + 2 * BLOCK_PORTS))))
    monkeypatch.setattr(ports, "FIRST", first)
    monkeypatch.setattr(ports, "LAST", first + 2 * BLOCK_PORTS - 1)
    return first


def chosen_ports(http: int | None = None) -> ClusterPorts:
    with ClusterPorts.claimed(http) as chosen:
        return chosen


def test_the_ports_of_a_cluster_are_distinct_and_in_its_block() -> None:
    """Ray starts with two servers on one port and fails much later, so it must not come to that."""
    chosen = chosen_ports()
    found = every_port(chosen)
    assert len(set(found)) == len(found)
    assert set(found) <= set(range(chosen.gcs, chosen.gcs + BLOCK_PORTS))
    assert ports.FIRST <= chosen.gcs <= ports.LAST + 1 - BLOCK_PORTS


def test_clusters_whose_heads_run_share_no_port(two_blocks: int) -> None:
    """Replicas take their ports late: what tells that a block is taken is the head alone."""
    one = chosen_ports()
    with socket.socket() as head:
        head.bind(("127.0.0.1", one.gcs))
        head.listen()
        for _ in range(10):
            assert not set(every_port(chosen_ports())) & set(every_port(one))


def test_clusters_that_start_at_the_same_moment_share_no_port(two_blocks: int) -> None:
    """A head listens two seconds after its ports were chosen: until then its block is claimed, and no longer."""
    with ClusterPorts.claimed() as one, ClusterPorts.claimed(http=8123) as other:
        assert {one.gcs, other.gcs} == {two_blocks, two_blocks + BLOCK_PORTS} and other.http == 8123
        with pytest.raises(ClusterError, match="no 250 free ones in a row"), ClusterPorts.claimed():
            pass
    with ClusterPorts.claimed() as again:
        assert again.gcs in (one.gcs, other.gcs)


def test_the_http_port_can_be_asked_for() -> None:
    """A service wants a port that its users know."""
    assert chosen_ports(http=8123).http == 8123


@pytest.mark.parametrize("place", [0, BLOCK_PORTS - 1])
def test_a_block_with_a_taken_port_is_not_given(two_blocks: int, place: int) -> None:
    """Somebody else's server has it."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", two_blocks + place))
        taken.listen()
        for _ in range(4):
            assert chosen_ports().gcs == two_blocks + BLOCK_PORTS


def test_more_nodes_than_there_are_ports_for_are_refused() -> None:
    """An eighth node would take the ports of replicas."""
    with pytest.raises(ClusterError, match="ports for 7 further nodes, and this is node 8"):
        chosen_ports().of_node(8)
