"""The only reader of os.environ. Every variable that the platform reads or sets is listed here."""

from __future__ import annotations

import os
import resource
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from recurra.config import haproxy

HAPROXY_CONNECTIONS = 7168
HAPROXY_OWN_FILES = 40

RAY_ENVIRONMENT = {
    "RAY_AUTH_MODE": "disabled",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
    # Requests go from a replica's HTTP server straight to our application (serving/direct.py).
    "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "recurra.serving.direct:middlewares",
    # A line of log for every request, which a Python process parses (0.05 to 0.1 ms of a core); ours counts all of it.
    "RAY_SERVE_HAPROXY_METRICS_ENABLED": "0",
    # One thread passes on tens of thousands of requests a second; four only take turns on the replicas' cores.
    "RAY_SERVE_HAPROXY_NBTHREAD": "1",
    "RAY_SERVE_HAPROXY_MAXCONN": str(HAPROXY_CONNECTIONS),
    "RAY_SERVE_HAPROXY_BALANCE_ALGORITHM": haproxy.BALANCE,
    "RAY_SERVE_HAPROXY_HEALTH_CHECK_INTER": haproxy.CHECK_INTERVAL,
    "RAY_SERVE_REPLICA_AUTOSCALING_METRIC_PUSH_INTERVAL_S": "1",
    "RAY_SERVE_HANDLE_AUTOSCALING_METRIC_PUSH_INTERVAL_S": "1",
    # A node whose process is gone counts as dead after five refused calls: 5 s instead of 15 until its actors start elsewhere.
    "RAY_health_check_period_ms": "1000",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "1",
    "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "1",
    # A process of its own for each attempt; the controller watches itself (training/ray_control.py).
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_TRAIN_ENABLE_STATE_TRACKING": "0",
    "RAY_TRAIN_COLLECTIVE_TIMEOUT_S": "300",
}
"""What every Ray node and driver that we start gets, unless the caller's environment sets it.
It is set before Ray is imported, since Ray reads most of it at import."""

TUNE_ENVIRONMENT = {"RAY_AIR_NEW_OUTPUT": "0", "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1"}
"""What the driver of a sweep gets besides: Tune neither prints nor writes logs of its own."""

MLFLOW_ENVIRONMENT = {"MLFLOW_DISABLE_TELEMETRY": "true"}
"""What a process gets before it imports MLflow, which would else tell its makers of it."""


@dataclass(frozen=True)
class MlflowSettings:
    """Where runs are tracked. What it takes to log in there, MLflow reads from the environment by itself."""

    tracking_uri: str
    experiment: str

    def __repr__(self) -> str:
        return f"MlflowSettings(experiment={self.experiment!r})"  # an address may hold a password


@dataclass(frozen=True)
class S3Settings:
    """How to reach the object store; keys stay in this process and are never pickled."""

    endpoint_url: str | None
    """Such as `http://127.0.0.1:18333`; None = AWS."""
    region: str
    access_key: str | None
    secret_key: str | None
    session_token: str | None

    def __reduce__(self) -> str | tuple[object, ...]:
        """Refuse to travel: every process reads its own environment."""
        raise TypeError("S3Settings holds credentials and is not pickled. Call s3_settings() in the other process.")

    def __repr__(self) -> str:
        return f"S3Settings(endpoint_url={self.endpoint_url!r}, region={self.region!r})"


def s3_settings() -> S3Settings:
    """Endpoint and credentials of the object store, from the variables that AWS tools use.

    `AWS_ENDPOINT_URL_S3` or `AWS_ENDPOINT_URL`, `AWS_REGION` or `AWS_DEFAULT_REGION`, `AWS_ACCESS_KEY_ID`,
    `AWS_SECRET_ACCESS_KEY`, `AWS_SESSION_TOKEN`. Without keys boto3 looks at its own chain
    (profile, web identity, instance role).
    """
    get = os.environ.get
    return S3Settings(
        endpoint_url=get("AWS_ENDPOINT_URL_S3") or get("AWS_ENDPOINT_URL"),
        region=get("AWS_REGION") or get("AWS_DEFAULT_REGION") or "us-east-1",
        access_key=get("AWS_ACCESS_KEY_ID"),
        secret_key=get("AWS_SECRET_ACCESS_KEY"),
        session_token=get("AWS_SESSION_TOKEN"),
    )


def ray_address() -> str | None:
    """`RECURRA_ADDRESS` or `RAY_ADDRESS`: the cluster to use when no `--address` is given."""
    return os.environ.get("RECURRA_ADDRESS") or os.environ.get("RAY_ADDRESS")


def dashboard_address() -> str | None:
    """`RAY_API_SERVER_ADDRESS`: the dashboard of that cluster, which takes jobs and Serve applications."""
    return os.environ.get("RAY_API_SERVER_ADDRESS") or None


def ray_auth_token() -> str | None:
    """`RAY_AUTH_TOKEN` where `RAY_AUTH_MODE` is `token`: what the dashboard's REST interface asks for."""
    if os.environ.get("RAY_AUTH_MODE") != "token":
        return None
    return os.environ.get("RAY_AUTH_TOKEN") or None


def names_object_store() -> bool:
    """Whether the environment says which S3 endpoint or account to use."""
    names = (
        "AWS_ENDPOINT_URL_S3",
        "AWS_ENDPOINT_URL",
        "AWS_ACCESS_KEY_ID",
        "AWS_PROFILE",
        "AWS_WEB_IDENTITY_TOKEN_FILE",
    )
    return any(os.environ.get(name) for name in names)


def adopt(variables: Mapping[str, str]) -> None:
    """Set, in this process, those variables that the caller's environment leaves unset."""
    for name, value in variables.items():
        os.environ.setdefault(name, value)


def api_key() -> str | None:
    """The bearer key of a deployment: `RECURRA_API_KEY`, or the file that `RECURRA_API_KEY_FILE` names."""
    if key := os.environ.get("RECURRA_API_KEY"):
        return key
    if path := os.environ.get("RECURRA_API_KEY_FILE"):
        return Path(path).read_text(encoding="utf-8").strip()
    return None


def metrics_address() -> str | None:
    """`RECURRA_METRICS_ADDRESS` (host:port): where the fleet's collector serves /metrics; None = nowhere."""
    return os.environ.get("RECURRA_METRICS_ADDRESS") or None


def mlflow_settings() -> MlflowSettings | None:
    """`MLFLOW_TRACKING_URI` and `MLFLOW_EXPERIMENT_NAME` (by default `recurra`); None when no address is set."""
    uri = os.environ.get("MLFLOW_TRACKING_URI")
    return MlflowSettings(uri, os.environ.get("MLFLOW_EXPERIMENT_NAME") or "recurra") if uri else None


def secret_values() -> frozenset[str]:
    """The keys that this process knows, so that logs can leave them out; values too short to be keys are not there."""
    settings = s3_settings()
    try:
        key = api_key()
    except OSError:
        key = None  # whoever needs the key says that its file is missing
    names = ("RAY_AUTH_TOKEN", "MLFLOW_TRACKING_TOKEN", "MLFLOW_TRACKING_PASSWORD")
    found = (settings.secret_key, settings.session_token, key, *map(os.environ.get, names))
    return frozenset(value for value in found if value and len(value) >= 8)


def state_dir() -> Path:
    """`RECURRA_HOME`, by default `~/.recurra`: pid files, logs and keys of what this user started."""
    return Path(os.environ.get("RECURRA_HOME") or Path.home() / ".recurra")


def cache_dir() -> Path:
    """`XDG_CACHE_HOME`/recurra, by default `~/.cache/recurra`: what can be made again at any time."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "recurra"


def native_kernels_wanted() -> bool:
    """False when `RECURRA_NATIVE` is 0: recurrent cores then run on torch's operations alone."""
    return os.environ.get("RECURRA_NATIVE", "1") != "0"


def apply_ray_environment() -> None:
    """Set `RAY_ENVIRONMENT` in this process where the variable is unset. Call before importing ray."""
    for name, value in _ray_environment_here().items():
        os.environ.setdefault(name, value)


def child_environment(**extra: str) -> dict[str, str]:
    """A copy of this process's environment with Ray's settings and `extra` in it, for a subprocess."""
    return {**_ray_environment_here(), **os.environ, **extra}


def _ray_environment_here() -> dict[str, str]:
    """`RAY_ENVIRONMENT` with what this machine allows."""
    return {**RAY_ENVIRONMENT, "RAY_SERVE_HAPROXY_MAXCONN": str(_haproxy_connections())}


def _haproxy_connections() -> int:
    """Clients of one HAProxy, as many as the limit of open files allows; Ray's default is 4096.

    It wants 2.5 files for each and does not start without them. While fewer than a fifth of them are open it goes on using
    its connections to replicas; beyond that it opens one for every request: with 4096 that is from about 1,000 clients on.
    """
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if most == resource.RLIM_INFINITY:
        return HAPROXY_CONNECTIONS
    return max(256, min(HAPROXY_CONNECTIONS, (most - HAPROXY_OWN_FILES) * 2 // 5))
