"""Ports of a local cluster, in a range of its own.

Ray's workers take 10002-19999, the embedded S3 server 20000-22699, outgoing connections 32768 and up.
"""

from __future__ import annotations

import random
import socket
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, fields
from typing import Self

from recurra.errors import ClusterError

FIRST, LAST = 23000, 29999
REPLICA_PORTS = 100
_RANDOM = random.SystemRandom()


@dataclass(frozen=True)
class ClusterPorts:
    """Every port that a head node would otherwise take from Ray's defaults, where clusters collide."""

    gcs: int
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
    def choose(cls, http: int | None = None) -> Self:
        """Free ports outside the ranges of Ray's workers and of outgoing connections; no two of them are one."""
        names = [item.name for item in fields(cls) if not item.name.startswith("replica")]
        replica_http = free_block(REPLICA_PORTS)
        taken = set(range(replica_http, replica_http + REPLICA_PORTS))
        replica_grpc = free_block(REPLICA_PORTS, taken)
        taken.update(range(replica_grpc, replica_grpc + REPLICA_PORTS))
        chosen = dict(zip(names, free_ports(len(names), taken), strict=True))
        if http is not None:
            chosen["http"] = http
        return cls(**chosen, replica_http=replica_http, replica_grpc=replica_grpc)

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


def free_ports(count: int, taken: AbstractSet[int] = frozenset()) -> list[int]:
    """Distinct ports on which a server can listen now, on all addresses, and which are not in `taken`.

    Raises:
        ClusterError: Fewer than `count` are free.
    """
    found: list[int] = []
    for port in _RANDOM.sample(range(FIRST, LAST + 1), LAST + 1 - FIRST):
        if port not in taken and is_free(port):
            found.append(port)
            if len(found) == count:
                return found
    raise ClusterError(f"Only {len(found)} of ports {FIRST}-{LAST} are free, {count} are needed. Stop other servers.")


def free_block(length: int, taken: AbstractSet[int] = frozenset()) -> int:
    """First port of a run of `length` free ports, none of them in `taken`."""
    starts = range(FIRST, LAST + 1 - length, length)
    for start in _RANDOM.sample(starts, len(starts)):
        if all(port not in taken and is_free(port) for port in range(start, start + length)):
            return start
    raise ClusterError(f"Ports {FIRST}-{LAST} have no {length} free ones in a row. Stop other servers.")


def is_free(port: int) -> bool:
    """Whether a server can listen on the port now, on all addresses."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError:
            return False
    return True
