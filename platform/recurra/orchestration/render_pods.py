"""Pods of a Ray cluster on Kubernetes: image, environment, ports, resources, and how they end.

How a pod ends decides what a preemption costs. SIGTERM makes `ray start` drain its node (training takes a checkpoint,
serving finishes its requests), so the three times must nest: grace period > drain > Serve's shutdown.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, Literal

from pydantic import Field

from recurra import __version__
from recurra.config.env import RAY_ENVIRONMENT
from recurra.config.section import Section

JOB_FILE_PATH = "/etc/recurra/job.yaml"
"""Where the head finds the job file; the folder is a ConfigMap."""
FLEET_METRICS_PORT = 9464
"""The whole fleet's /metrics, on the head (`RECURRA_METRICS_ADDRESS`)."""
HAPROXY_METRICS_PORT = 9101
DRAIN_S = 150
GRACE_AFTER_DRAIN_S = 30
GPU_RESOURCE = "nvidia.com/gpu"

_HEAD_PORTS = (
    (6379, "gcs-server"),
    (8265, "dashboard"),
    (10001, "client"),
    (44217, "as-metrics"),
    (44227, "dash-metrics"),
    (FLEET_METRICS_PORT, "fleet-metrics"),
)

Values = dict[str, Any]


class PodOptions(Section):
    """Image, names and sizes of the pods."""

    image: str = f"recurra:{__version__}"
    """Made with deploy/Dockerfile; holds the same Ray as this installation."""
    gpu: bool = False
    """One NVIDIA GPU for each training worker."""
    settings: str = "recurra-settings"
    """ConfigMap whose keys become environment variables: AWS_ENDPOINT_URL, AWS_REGION."""
    store_secret: str = "recurra-s3"
    """Secret whose keys become environment variables: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY."""
    api_secret: str = "recurra-api"
    """Secret with RECURRA_API_KEY, which clients of the service have to send."""
    service_account: str = "recurra"
    head_cpu: str = "1"
    head_memory: str = "4Gi"
    worker_memory: str = "4Gi"
    """Of each training worker and each replica."""
    max_workers: int | None = Field(default=None, ge=1)
    """Upper limit of pods in a group; null = what the job file says."""


def labels(job_name: str, component: str) -> dict[str, str]:
    """The labels that select what belongs to a job, on objects and pods alike."""
    return {
        "app.kubernetes.io/name": job_name,
        "app.kubernetes.io/component": component,
        "app.kubernetes.io/part-of": "recurra",
    }


@dataclass(frozen=True)
class ClusterShape:
    """What one Ray cluster is for and how large it is."""

    component: Literal["train", "serve", "cluster"]
    job_name: str
    workers: tuple[int, int]
    """Fewest and most pods; a range makes Ray's autoscaler decide."""
    cpus: float
    """Whole or part CPUs that Ray hands out on each worker."""
    gpu: bool = False
    job_file: str | None = None
    """ConfigMap that the head mounts at the folder of `JOB_FILE_PATH`."""
    shutdown_s: float = 0.0
    """What Serve gives a leaving replica."""

    @property
    def drain_s(self) -> int:
        """Seconds from SIGTERM until Ray stops a node."""
        return max(DRAIN_S, math.ceil(self.shutdown_s) + 60)

    @property
    def labels(self) -> dict[str, str]:
        return labels(self.job_name, self.component)


def cluster_spec(shape: ClusterShape, options: PodOptions) -> Values:
    """A RayClusterSpec: a head that computes nothing, and one group of workers."""
    low, high = shape.workers
    high = max(low, min(high, options.max_workers or high))
    spec: Values = {
        "rayVersion": version("ray"),
        "authOptions": {"mode": "token"},
        "enableInTreeAutoscaling": low < high,
    }
    if low < high:
        spec["autoscalerOptions"] = {
            "version": "v2",
            "idleTimeoutSeconds": 300,
            "securityContext": _container_security(),
            "resources": _resources("500m", "1Gi"),
        }
    spec["headGroupSpec"] = {"rayStartParams": {"num-cpus": "0"}, "template": _head_template(shape, options)}
    spec["workerGroupSpecs"] = [
        {
            "groupName": "gpu" if shape.gpu else "cpu",
            "replicas": low,
            "minReplicas": low,
            "maxReplicas": high,
            "rayStartParams": {"num-cpus": str(max(1, math.ceil(shape.cpus)))},
            "template": _worker_template(shape, options),
        }
    ]
    return spec


def _head_template(shape: ClusterShape, options: PodOptions) -> Values:
    container = _container("ray-head", [*_HEAD_PORTS, *_node_ports(shape)], shape, options)
    container["env"].append({"name": "RECURRA_METRICS_ADDRESS", "value": f"0.0.0.0:{FLEET_METRICS_PORT}"})
    container["resources"] = _resources(options.head_cpu, options.head_memory)
    template = _template(container, shape, options)
    if shape.job_file:
        folder = JOB_FILE_PATH.rpartition("/")[0]
        container["volumeMounts"] = [{"name": "job", "mountPath": folder, "readOnly": True}]
        template["spec"]["volumes"] = [{"name": "job", "configMap": {"name": shape.job_file}}]
    return template


def _worker_template(shape: ClusterShape, options: PodOptions) -> Values:
    container = _container("ray-worker", _node_ports(shape), shape, options)
    # Half a CPU more than Ray hands out is for its own processes and HAProxy.
    container["resources"] = _resources(f"{math.ceil(shape.cpus * 1000) + 500}m", options.worker_memory, shape.gpu)
    template = _template(container, shape, options)
    # The autoscaler beside the head talks to the Kubernetes API; nobody else does.
    template["spec"]["automountServiceAccountToken"] = False
    if shape.gpu:
        template["spec"]["tolerations"] = [{"key": GPU_RESOURCE, "operator": "Exists", "effect": "NoSchedule"}]
    return template


def _node_ports(shape: ClusterShape) -> list[tuple[int, str]]:
    metrics = [(8080, "metrics")]
    serving = [(8000, "serve"), (HAPROXY_METRICS_PORT, "haproxy-metrics")]
    return metrics if shape.component == "train" else [*metrics, *serving]


def _template(container: Values, shape: ClusterShape, options: PodOptions) -> Values:
    return {
        "metadata": {"labels": shape.labels},
        "spec": {
            "terminationGracePeriodSeconds": shape.drain_s + GRACE_AFTER_DRAIN_S,
            "serviceAccountName": options.service_account,
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": 1000,
                "runAsGroup": 1000,
                "fsGroup": 1000,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [container],
        },
    }


def _container(name: str, ports: Sequence[tuple[int, str]], shape: ClusterShape, options: PodOptions) -> Values:
    # RAY_AUTH_MODE comes from authOptions; a value here would switch the token off.
    environment = {key: value for key, value in RAY_ENVIRONMENT.items() if key != "RAY_AUTH_MODE"}
    environment["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"] = str(shape.drain_s)
    secrets = [options.store_secret] if shape.component == "train" else [options.store_secret, options.api_secret]
    return {
        "name": name,
        "image": options.image,
        "imagePullPolicy": "IfNotPresent",
        "ports": [{"containerPort": port, "name": port_name} for port, port_name in ports],
        "env": [{"name": key, "value": value} for key, value in environment.items()],
        "envFrom": [
            {"configMapRef": {"name": options.settings}},
            *({"secretRef": {"name": secret}} for secret in secrets),
        ],
        "securityContext": _container_security(),
    }


def _container_security() -> Values:
    return {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}


def _resources(cpu: str, memory: str, gpu: bool = False) -> Values:
    """Requests equal to limits: Ray plans with what it sees as the limit."""
    amounts = {"cpu": cpu, "memory": memory} | ({GPU_RESOURCE: "1"} if gpu else {})
    return {"requests": dict(amounts), "limits": dict(amounts)}
