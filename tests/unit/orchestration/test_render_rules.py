import copy

import pytest
import yaml

from recurra.config.load import parse
from recurra.orchestration.job_file import JobFile
from recurra.orchestration.render import RenderOptions, render_kubernetes
from recurra.orchestration.render_rules import violations

JOB = parse(
    {
        "name": "sms",
        "task": "language_model",
        "data": {"train": "s3://bucket/train"},
        "train": {"workers": [1, 4], "steps": 100},
        "publish": {"model": "sms"},
    },
    JobFile,
)
GOOD = {d["kind"]: d for d in yaml.safe_load_all(render_kubernetes(JOB, RenderOptions(cluster=True)))}
HEAD = "headGroupSpec.template.spec"
DELETE = {"policy": "DeleteCluster", "condition": {"jobStatus": "FAILED", "ttlSeconds": 5}}
INCREMENTAL = {"type": "NewClusterWithIncrementalUpgrade"}
REMOVE = object()


def changed(kind, changes):
    """A good document with some of its settings, by dotted path, replaced."""
    document = copy.deepcopy(GOOD[kind])
    for path, value in changes.items():
        *parents, last = path.split(".")
        node = document
        for key in parents:
            node = node[int(key)] if isinstance(node, list) else node.setdefault(key, {})
        if value is REMOVE:
            del node[last]
        else:
            node[last] = value
    return document


@pytest.mark.parametrize("kind", list(GOOD))
def test_what_render_writes_breaks_no_rule(kind):
    """Otherwise `kubectl apply` would take it and nothing would start."""
    assert violations(GOOD[kind]) == []


CASES = [
    ("RayCluster", {"metadata.name": "a" * 54}, "longer than 53"),
    ("RayCluster", {"metadata.name": "Capital"}, "DNS-1035"),
    ("RayCluster", {f"spec.{HEAD}.containers": []}, "head has no container"),
    ("RayCluster", {"spec.headGroupSpec.resources": {"CPU": "1"}}, "in rayStartParams and in resources"),
    ("RayCluster", {"spec.headGroupSpec.rayStartParams.labels": "a=b"}, "labels in rayStartParams"),
    ("RayCluster", {"spec.workerGroupSpecs.0.minReplicas": 9}, "minReplicas above maxReplicas"),
    ("RayCluster", {"spec.rayVersion": REMOVE}, "needs rayVersion"),
    ("RayCluster", {"spec.rayVersion": "2.51.0"}, "needs Ray 2.52"),
    ("RayCluster", {f"spec.{HEAD}.restartPolicy": "Always"}, "autoscaler v2 needs"),
    ("RayCluster", {"spec.workerGroupSpecs.0.suspend": True}, "suspended while the autoscaler"),
    (
        "RayCluster",
        {f"spec.{HEAD}.containers.0.env": [{"name": "RAY_enable_autoscaler_v2", "value": "1"}]},
        "are both set",
    ),
    (
        "RayCluster",
        {
            "spec.enableInTreeAutoscaling": False,
            f"spec.{HEAD}.containers.0.env": [{"name": "RAY_enable_autoscaler_v2", "value": "1"}],
        },
        "while enableInTreeAutoscaling is false",
    ),
    (
        "RayCluster",
        {f"spec.{HEAD}.containers.0.env": [{"name": "RAY_REDIS_ADDRESS", "value": "redis:6379"}]},
        "without gcsFaultToleranceOptions",
    ),
    (
        "RayCluster",
        {
            "spec.gcsFaultToleranceOptions": {"redisAddress": "redis:6379"},
            "spec.headGroupSpec.rayStartParams.redis-password": "x",
        },
        "beside gcsFaultToleranceOptions",
    ),
    (
        "RayCluster",
        {
            "spec.gcsFaultToleranceOptions": {"redisAddress": "redis:6379"},
            "metadata.annotations": {"ray.io/ft-enabled": "true", "ray.io/external-storage-namespace": "a"},
        },
        "are both set",
    ),
    ("RayCluster", {"spec.headGroupSpec.rayStartParams.redis-username": "x"}, "the Redis user"),
    ("RayJob", {"metadata.name": "a" * 48}, "longer than 47"),
    ("RayJob", {"spec.shutdownAfterJobFinishes": True}, "beside shutdownAfterJobFinishes"),
    ("RayJob", {"spec.ttlSecondsAfterFinished": 5}, "without shutdownAfterJobFinishes"),
    ("RayJob", {"spec.suspend": True}, "suspend needs"),
    ("RayJob", {"spec.rayClusterSpec": REMOVE}, "neither rayClusterSpec nor clusterSelector"),
    ("RayJob", {"spec.clusterSelector": {"ray.io/cluster": "a"}}, "SidecarMode takes no clusterSelector"),
    ("RayJob", {"spec.submitterConfig": {"backoffLimit": 1}}, "SidecarMode takes no"),
    ("RayJob", {f"spec.rayClusterSpec.{HEAD}.restartPolicy": "Always"}, "which SidecarMode needs"),
    ("RayJob", {"spec.submissionMode": "InteractiveMode"}, "backoffLimit is negative"),
    ("RayJob", {"spec.activeDeadlineSeconds": 0}, "activeDeadlineSeconds is not positive"),
    ("RayJob", {"spec.runtimeEnvYAML": "a: ["}, "runtimeEnvYAML"),
    ("RayJob", {"spec.deletionStrategy.deletionRules": []}, "no deletionRules"),
    ("RayJob", {"spec.deletionStrategy.deletionRules": [DELETE, DELETE]}, "is there twice"),
    (
        "RayJob",
        {"spec.deletionStrategy.deletionRules": [{**DELETE, "policy": "DeleteWorkers"}]},
        "does not go with autoscaling",
    ),
    (
        "RayJob",
        {
            "spec.deletionStrategy.deletionRules": [
                DELETE,
                {"policy": "DeleteSelf", "condition": {"jobStatus": "FAILED", "ttlSeconds": 1}},
            ]
        },
        "in this order",
    ),
    (
        "RayJob",
        {"spec.deletionStrategy.deletionRules": [{"policy": "DeleteSelf", "condition": {"ttlSeconds": 1}}]},
        "exactly one of jobStatus",
    ),
    ("RayService", {"spec.upgradeStrategy.type": "Rolling"}, "not one of"),
    ("RayService", {"spec.rayClusterDeletionDelaySeconds": -1}, "is negative"),
    ("RayService", {"spec.serveConfigV2": "a: ["}, "no YAML mapping"),
    ("RayService", {"spec.rayClusterConfig.headGroupSpec.headService.metadata.name": "a"}, "headService has a name"),
    ("RayService", {"spec.upgradeStrategy": INCREMENTAL}, "needs enableInTreeAutoscaling"),
    ("RayService", {"spec.upgradeStrategy": INCREMENTAL}, "needs stepSizePercent"),
]


@pytest.mark.parametrize(("kind", "changes", "message"), CASES)
def test_a_broken_rule_is_named(kind, changes, message):
    """The operator's own message shows up only in the status of an object that already exists."""
    assert any(message in found for found in violations(changed(kind, changes)))


def test_an_incremental_upgrade_with_all_it_needs_is_fine():
    """It shifts traffic step by step where the Gateway API is installed."""
    options = {"maxSurgePercent": 40, "stepSizePercent": 10, "intervalSeconds": 30, "gatewayClassName": "istio"}
    document = changed(
        "RayService",
        {
            "spec.upgradeStrategy": {**INCREMENTAL, "clusterUpgradeOptions": options},
            "spec.rayClusterConfig.enableInTreeAutoscaling": True,
        },
    )

    assert violations(document) == []


def test_other_kinds_are_not_kuberays_business():
    """The ConfigMap is checked by Kubernetes."""
    assert violations(GOOD["ConfigMap"]) == []
