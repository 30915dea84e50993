"""A job file as Kubernetes manifests for KubeRay v1.7: what `recurra render k8s` prints and `k8s/base` is made with."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import yaml

from recurra.errors import ConfigError
from recurra.orchestration.deploy import serve_document
from recurra.orchestration.job_file import JobFile
from recurra.orchestration.render_pods import JOB_FILE_PATH, ClusterShape, PodOptions, cluster_spec, labels
from recurra.orchestration.render_rules import violations
from recurra.serving.run import Release

MAX_NAME = 47
"""Longest name of a RayJob or RayService that KubeRay takes."""
SERVE_HTTP_PORT = 8000

Document = dict[str, Any]


class RenderOptions(PodOptions):
    """What a job file does not say: where and from which image it runs. Further fields in `PodOptions`."""

    namespace: str | None = None
    """Namespace written into each document; null = none, so that kustomize or kubectl decides."""
    cluster: bool = False
    """Also a RayCluster that stays, for `recurra submit --address` and for notebooks."""
    release: Release = Release()
    """Bundles that the service is to serve; empty = what its references mean when a replica starts."""


def render_kubernetes(job: JobFile, options: RenderOptions | None = None) -> str:
    """The job as YAML documents: ConfigMap (the job file), RayJob (if it trains), RayService (if it serves).

    The same job and options always give the same text.

    Raises:
        ConfigError: A name is too long for Kubernetes, or the operator would refuse the result.
    """
    return dump_documents(kubernetes_documents(job, options or RenderOptions()))


def render_serve(job: JobFile, release: Release = Release()) -> str:  # noqa: B008 (frozen)
    """The job's Ray Serve configuration file: for `serve deploy`, and the RayService's serveConfigV2."""
    run = job.serve_run().model_copy(update={"release": release})
    document = serve_document(run, http_port=SERVE_HTTP_PORT)
    # The image that reads this has the same defaults, so only what the job file says is written.
    document["applications"][0]["args"]["serve"] = run.serve.model_dump(mode="json", exclude_unset=True)
    return _yaml(document)


def kubernetes_documents(job: JobFile, options: RenderOptions) -> list[Document]:
    """What `render_kubernetes` writes, as values."""
    documents = []
    if options.cluster:
        documents.append(_ray_cluster(job, options))
    if job.train is not None:
        documents += [_job_file(job), _ray_job(job, options)]
    if job.serve is not None or job.publish is not None:
        documents.append(_ray_service(job, options))
    if not documents:
        raise ConfigError(f"The job file '{job.name}' neither trains nor serves. Add a 'train' or a 'serve' section.")
    for document in documents:
        if options.namespace:
            document["metadata"]["namespace"] = options.namespace
        if found := violations(document):
            raise ConfigError(f"KubeRay would refuse the {document['kind']} of '{job.name}': {'; '.join(found)}.")
    return documents


def dump_documents(documents: list[Document]) -> str:
    """Values as one YAML stream."""
    return "---\n".join(_yaml(document) for document in documents)


def _job_file(job: JobFile) -> Document:
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": _metadata(job, "job", "train"),
        "data": {JOB_FILE_PATH.rpartition("/")[2]: _yaml(job.model_dump(mode="json", exclude_unset=True))},
    }


def _ray_job(job: JobFile, options: RenderOptions) -> Document:
    train = job.train
    assert train is not None
    shape = ClusterShape(
        "train", job.name, _range(train.workers), train.threads, options.gpu, job_file=_name(job, "job")
    )
    spec: Document = {
        "entrypoint": f"recurra train {JOB_FILE_PATH}",
        # The submitter runs beside the head, so that no websocket can hang; it takes no pod template of its own.
        "submissionMode": "SidecarMode",
        # Each retry is a new cluster; the run goes on from its last checkpoint because its name is the same.
        "backoffLimit": 2,
        "preRunningDeadlineSeconds": 1800,
    }
    if train.stop.max_duration is not None:
        spec["activeDeadlineSeconds"] = int(train.stop.max_duration) + 3600
    spec["deletionStrategy"] = {
        "deletionRules": [
            _delete("DeleteCluster", "SUCCEEDED", 60),
            _delete("DeleteCluster", "FAILED", 3600),
        ]
    }
    spec["rayClusterSpec"] = cluster_spec(shape, options)
    return {"apiVersion": "ray.io/v1", "kind": "RayJob", "metadata": _metadata(job, "train", "train"), "spec": spec}


def _ray_service(job: JobFile, options: RenderOptions) -> Document:
    run = job.serve_run()
    serve = run.serve
    low, high = serve.replica_range
    # One pod stays even when the service scales to zero: HAProxy on it answers while the first replica starts.
    workers = (max(1, low), high)
    gpu = serve.gpus_per_replica > 0
    shape = ClusterShape("serve", job.name, workers, serve.cpus_per_replica, gpu, shutdown_s=serve.shutdown_s)
    spec = {
        # A new cluster takes over once it is healthy; the old one may first finish its longest request.
        "upgradeStrategy": {"type": "NewCluster"},
        "rayClusterDeletionDelaySeconds": max(120, int(2 * serve.deadline_s)),
        "excludeHeadPodFromServeSvc": True,
        "serveConfigV2": render_serve(job, options.release),
        "rayClusterConfig": cluster_spec(shape, options),
    }
    metadata = _metadata(job, "serve", "serve")
    return {"apiVersion": "ray.io/v1", "kind": "RayService", "metadata": metadata, "spec": spec}


def _ray_cluster(job: JobFile, options: RenderOptions) -> Document:
    workers = _range(job.train.workers) if job.train else (1, 1)
    cpus = job.train.threads if job.train else 1
    spec = cluster_spec(ClusterShape("cluster", job.name, workers, cpus, options.gpu), options)
    metadata = _metadata(job, "cluster", "cluster")
    return {"apiVersion": "ray.io/v1", "kind": "RayCluster", "metadata": metadata, "spec": spec}


def _metadata(job: JobFile, suffix: str, component: str) -> Document:
    return {"name": _name(job, suffix), "labels": labels(job.name, component)}


def _name(job: JobFile, suffix: str) -> str:
    name = f"{job.name}-{suffix}"
    if len(name) > MAX_NAME or not re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name):
        longest = MAX_NAME - len("-cluster")
        raise ConfigError(
            f"The name '{job.name}' cannot be used on Kubernetes. Start it with a letter and use at most {longest} "
            "lower-case letters, digits and hyphens."
        )
    return name


def _range(workers: int | tuple[int, int]) -> tuple[int, int]:
    return (workers, workers) if isinstance(workers, int) else workers


def _delete(policy: str, status: str, after_s: int) -> Document:
    return {"policy": policy, "condition": {"jobStatus": status, "ttlSeconds": after_s}}


class _Dumper(yaml.SafeDumper):
    """Texts of several lines as blocks, since people read serveConfigV2; no anchors, since kubectl users do not."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style="|" if "\n" in value else None)


_Dumper.add_representer(str, _text)
_represent: Callable[..., Any] = yaml.dump


def _yaml(value: Document) -> str:
    return str(_represent(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120))
