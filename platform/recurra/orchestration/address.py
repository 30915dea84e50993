"""Which Ray cluster a command means: its GCS for a driver, its dashboard for jobs and applications."""

from __future__ import annotations

import socket
from dataclasses import dataclass

from recurra.config.env import apply_ray_environment, dashboard_address, ray_address
from recurra.errors import ClusterError
from recurra.orchestration.local_cluster import LocalCluster
from recurra.orchestration.local_platform import LocalPlatform

CONNECT_TIMEOUT_S = 5.0
HINT = "Give --address host:port, set RECURRA_ADDRESS, or start a cluster on this machine: recurra up."


@dataclass(frozen=True)
class ClusterAddress:
    """A cluster as far as it is known without asking it."""

    gcs: str | None
    """`host:port` for `ray.init`."""
    dashboard: str | None
    """`http://host:port`."""
    local: LocalCluster | None = None
    """The cluster of `recurra up`, if it is that one."""

    @property
    def http_port(self) -> int:
        """Where Serve's ingress listens if this command is the first to start it."""
        return self.local.record.ports.http if self.local else 8000

    def driver_address(self) -> str:
        """What a driver on this machine connects to, once something listens there: Ray itself would try for minutes.

        Raises:
            ClusterError: Only the dashboard is known, or nothing listens at the address.
        """
        if self.gcs is None:
            raise ClusterError(
                f"{self.dashboard} is a dashboard, which takes jobs but no driver. "
                "Run 'recurra submit FILE' instead, or give the cluster's host:port (often port 6379)."
            )
        host, colon, port = self.gcs.rpartition(":")
        if not colon or not port.isdecimal() or "/" in host:
            raise ClusterError(f"'{self.gcs}' is no address of a Ray cluster. Write host:port, such as 10.0.0.5:6379.")
        try:
            socket.create_connection((host.strip("[]"), int(port)), CONNECT_TIMEOUT_S).close()
        except OSError as exc:
            raise ClusterError(f"Nothing answers at the Ray address {self.gcs} ({exc}). {HINT}") from exc
        return self.gcs

    def dashboard_url(self) -> str:
        """The dashboard's address; a cluster known by its GCS alone is asked for it.

        Raises:
            ClusterError: It cannot be reached, or runs without a dashboard.
        """
        if self.dashboard is not None:
            return self.dashboard
        address = self.driver_address()
        apply_ray_environment()
        import ray  # a second to import, and most commands get by without

        try:
            with ray.init(address=address, log_to_driver=False, logging_level="ERROR") as context:
                url = context.dashboard_url
        except (ConnectionError, RuntimeError, ValueError) as exc:
            raise ClusterError(f"The Ray cluster {self.gcs} cannot be reached ({exc}). {HINT}") from exc
        if not url:
            raise ClusterError(f"The Ray cluster {self.gcs} has no dashboard. Start it with --include-dashboard=true.")
        return f"http://{url}"


def find_cluster(address: str | None) -> ClusterAddress | None:
    """The cluster of `--address`, of the environment, or of `recurra up`, in this order; None = there is none."""
    platform = LocalPlatform.find()
    local = platform.cluster if platform else None
    given = address or ray_address() or dashboard_address()
    if given is None:
        return ClusterAddress(local.address, local.dashboard_url, local) if local else None
    given = given.rstrip("/")
    if local and given in (local.address, local.dashboard_url):
        return ClusterAddress(local.address, local.dashboard_url, local)
    if given.startswith(("http://", "https://")):
        return ClusterAddress(None, given)
    return ClusterAddress(given, None if address else dashboard_address())


def need_cluster(address: str | None) -> ClusterAddress:
    """As `find_cluster`.

    Raises:
        ClusterError: There is none.
    """
    cluster = find_cluster(address)
    if cluster is None:
        raise ClusterError(f"No Ray cluster is known. {HINT}")
    return cluster
