"""Ports of a local cluster: one block of its own, whose first port its head listens on as long as it lives.

So a cluster that runs is seen by whoever looks for a block, though most of its ports are taken only later, by replicas.
While it starts, its block is claimed by a lock.
Ray's workers take 10002-19999, the embedded S3 server 20000-22699, outgoing connections 32768 and up.
"""

from __future__ import annotations

import random
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import NamedTuple, Self

from recurra.errors import ClusterError
from recurra.storage.ports import claimed

FIRST, LAST = 23000, 29999
BLOCK_PORTS = 250
REPLICA_PORTS = 100
_NODES_OFFSET, _MAX_NODES = 20, 7
_HTTP_OFFSET, _GRPC_OFFSET = 50, 150
_RANDOM = random.SystemRandom()


class NodePorts(NamedTuple):
    """What a further node of the cluster would otherwise take from Ray's defaults."""

    http: int
    grpc: int
    haproxy_metrics: int
    haproxy_stats: int

    def environment(self) -> dict[str, str]:
        """What tells Ray of them."""
        return {
            "RAY_SERVE_WORKER_PROXY_HTTP_PORT": str(self.http),
            "RAY_SERVE_WORKER_PROXY_GRPC_PORT": str(self.grpc),
            "RAY_SERVE_HAPROXY_METRICS_PORT": str(self.haproxy_metrics),
            "RAY_SERVE_HAPROXY_STATS_PORT": str(self.haproxy_stats),
        }


@dataclass(frozen=True)
class ClusterPorts:
    """Every port that a head node would otherwise take from Ray's defaults, where clusters collide."""

    gcs: int
    """First of the block: the head listens on it from its start to its end."""
    dashboard: int
    client: int
    metrics: int
    agent: int
    agent_grpc: int
    runtime_env: int
    http: int
    """Ray Serve's HTTP ingress (HAProxy)."""
    grpc: int
    fallback_http: int
    fallback_grpc: int
    haproxy_metrics: int
    haproxy_stats: int
    autoscaler_metrics: int
    dashboard_metrics: int
    fleet_metrics: int
    """Where `telemetry.fleet` shows the metrics of all processes."""
    replica_http: int
    """First of `REPLICA_PORTS` ports that replicas listen on."""
    replica_grpc: int

    @classmethod
    @contextmanager
    def claimed(cls, http: int | None = None) -> Iterator[Self]:
        """The ports of a free block: inside the `with` nobody else of this user is given it, and by its end the head must
        listen.

        Args:
            http: Port of the ingress, outside of the block; None = one of the block.

        Raises:
            ClusterError: No block is free.
        """
        starts = range(FIRST, LAST + 2 - BLOCK_PORTS, BLOCK_PORTS)
        for start in _RANDOM.sample(starts, len(starts)):
            with claimed(str(start), wait=False) as ours:
                if ours and all(is_free(port) for port in range(start, start + BLOCK_PORTS)):
                    yield cls._of(start, http)
                    return
        raise ClusterError(f"Ports {FIRST}-{LAST} have no {BLOCK_PORTS} free ones in a row. Stop other servers.")

    @classmethod
    def _of(cls, start: int, http: int | None) -> Self:
        names = [item.name for item in fields(cls) if not item.name.startswith("replica")]
        chosen = {name: start + offset for offset, name in enumerate(names)}
        if http is not None:
            chosen["http"] = http
        return cls(**chosen, replica_http=start + _HTTP_OFFSET, replica_grpc=start + _GRPC_OFFSET)

    def of_node(self, number: int) -> NodePorts:
        """The ports of the cluster's further node of that number, counted from 1.

        Raises:
            ClusterError: The block has none for so many nodes.
        """
        if not 1 <= number <= _MAX_NODES:
            raise ClusterError(f"A local cluster has ports for {_MAX_NODES} further nodes, and this is node {number}.")
        first = self.gcs + _NODES_OFFSET + (number - 1) * len(NodePorts._fields)
        return NodePorts(*range(first, first + len(NodePorts._fields)))

    def environment(self) -> dict[str, str]:
        """What tells Ray and the fleet's collector of the ports that have no command-line option."""
        return {
            "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(self.fallback_http),
            "RAY_SERVE_FALLBACK_PROXY_GRPC_PORT": str(self.fallback_grpc),
            "RAY_SERVE_HAPROXY_METRICS_PORT": str(self.haproxy_metrics),
            "RAY_SERVE_HAPROXY_STATS_PORT": str(self.haproxy_stats),
            "AUTOSCALER_METRIC_PORT": str(self.autoscaler_metrics),
            "DASHBOARD_METRIC_PORT": str(self.dashboard_metrics),
            "RECURRA_METRICS_ADDRESS": f"127.0.0.1:{self.fleet_metrics}",
            "RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT": str(self.replica_http),
            "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT": str(self.replica_http + REPLICA_PORTS - 1),
            "RAY_SERVE_DIRECT_INGRESS_MIN_GRPC_PORT": str(self.replica_grpc),
            "RAY_SERVE_DIRECT_INGRESS_MAX_GRPC_PORT": str(self.replica_grpc + REPLICA_PORTS - 1),
        }


def is_free(port: int) -> bool:
    """Whether a server can listen on the port now, on all addresses."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError:
            return False
    return True
