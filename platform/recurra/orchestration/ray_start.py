"""What the processes of a local Ray node are started with: arguments of `ray start`, and settings that have none."""

from __future__ import annotations

from recurra.orchestration.ports import ClusterPorts

OBJECT_STORE_BYTES = 200_000_000
RECONNECT_S = 600
"""Nodes of a durable cluster wait so long for their head; Ray's own 60 s are less than a busy machine may need to start one."""


def head_arguments(ports: ClusterPorts, temp_dir: str, num_cpus: int | None) -> list[str]:
    """Of a head; None = all CPUs of the machine."""
    return [
        "--head",
        f"--port={ports.gcs}",
        f"--dashboard-port={ports.dashboard}",
        "--dashboard-host=127.0.0.1",
        f"--ray-client-server-port={ports.client}",
        f"--metrics-export-port={ports.metrics}",
        f"--dashboard-agent-listen-port={ports.agent}",
        f"--dashboard-agent-grpc-port={ports.agent_grpc}",
        f"--runtime-env-agent-port={ports.runtime_env}",
        f"--temp-dir={temp_dir}",
        "--no-monitor",  # Ray's autoscaler, which has nothing to start here
        *node_arguments(num_cpus),
    ]


def node_arguments(num_cpus: int | None) -> list[str]:
    """Of any node."""
    return [
        "--disable-usage-stats",
        "--log-style=record",
        "--include-log-monitor=false",  # passes on what workers print, which no driver of ours listens to
        f"--object-store-memory={OBJECT_STORE_BYTES}",
        # 0 = any free port: the default range 10002-19999 is shared by every cluster and takes other servers' ports.
        "--min-worker-port=0",
        "--max-worker-port=0",
        *([f"--num-cpus={num_cpus}"] if num_cpus is not None else []),
    ]


def node_environment(temp_dir: str, number: int, *, durable: bool) -> dict[str, str]:
    """Of a node, counted from 0 = the head.

    Args:
        durable: Whether the head's tables are on disk.
    """
    found = {
        # A local cluster has nowhere to drain to: without these a stop waits 30 s for replicas to go.
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "2",
        **_haproxy_files(f"{temp_dir}/h{number}"),
    }
    if durable:
        found |= {"RAY_gcs_storage": "rocksdb", "RAY_gcs_storage_path": f"{temp_dir}/gcs"}
        found["RAY_gcs_rpc_server_reconnect_timeout_s"] = str(RECONNECT_S)
    return found


def _haproxy_files(folder: str) -> dict[str, str]:
    """Ray puts a folder of 56 letters between `folder` and the name, and HAProxy takes socket paths up to 97 bytes."""
    return {
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": f"{folder}/haproxy.cfg",
        "RAY_SERVE_HAPROXY_SOCKET_PATH": f"{folder}/a.sock",
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": folder,
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": f"{folder}/server-state",
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": f"{folder}/m.sock",
    }
