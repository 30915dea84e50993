"""Rules that KubeRay's operator checks in Go and no CRD schema holds (v1.7.0, ray-operator/controllers/ray/utils/
validation.go): a manifest that breaks one is taken by `kubectl apply` and then stays in ValidationFailed."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import yaml

Values = dict[str, Any]

_DNS_1035 = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
_LONGEST_NAME = {"RayCluster": 53, "RayJob": 47, "RayService": 47}
_DELETION_ORDER = ("DeleteWorkers", "DeleteCluster", "DeleteSelf")
_UPGRADES = ("NewClusterWithIncrementalUpgrade", "NewCluster", "None")
_OLDEST_WITH_TOKENS = (2, 52)
_FIRST_WITH_V2 = (2, 47)


def violations(document: Values) -> list[str]:
    """What the operator would say against a RayCluster, RayJob or RayService; empty for any other kind."""
    kind, spec = document["kind"], document.get("spec") or {}
    annotations = document["metadata"].get("annotations") or {}
    if kind not in _LONGEST_NAME:
        return []
    found = list(_name(kind, document["metadata"]["name"]))
    if kind == "RayCluster":
        found += _cluster(spec, annotations)
    elif kind == "RayJob":
        found += _job(spec)
        found += _cluster(spec["rayClusterSpec"], annotations) if spec.get("rayClusterSpec") else []
    else:
        found += _service(spec)
        found += _cluster(spec.get("rayClusterConfig") or {}, annotations)
    return found


def _name(kind: str, name: str) -> Iterator[str]:
    if len(name) > _LONGEST_NAME[kind]:
        yield f"the name '{name}' is longer than {_LONGEST_NAME[kind]} characters"
    if not _DNS_1035.fullmatch(name):
        yield f"the name '{name}' is no DNS-1035 label"


def _cluster(spec: Values, annotations: Values) -> Iterator[str]:
    head = spec.get("headGroupSpec") or {}
    groups = spec.get("workerGroupSpecs") or []
    for name, group in [("head", head), *((group.get("groupName", "?"), group) for group in groups)]:
        yield from _group(name, group)
    if len({group.get("groupName") for group in groups}) != len(groups):
        yield "two worker groups have the same name"
    yield from _fault_tolerance(spec, _environment(head), head.get("rayStartParams") or {}, annotations)
    yield from _autoscaling(spec, head, groups)
    if (spec.get("authOptions") or {}).get("mode") == "token":
        if not spec.get("rayVersion"):
            yield "authOptions.mode is token, which needs rayVersion"
        elif _version(spec) < _OLDEST_WITH_TOKENS:
            yield f"authOptions.mode is token, which needs Ray 2.52, and rayVersion is {spec['rayVersion']}"


def _group(name: str, group: Values) -> Iterator[str]:
    parameters = group.get("rayStartParams") or {}
    if not _pod(group).get("containers"):
        yield f"group {name} has no container"
    if group.get("resources") and {"num-cpus", "num-gpus", "memory", "resources"} & parameters.keys():
        yield f"group {name} sets resources in rayStartParams and in resources"
    if "labels" in parameters:
        yield f"group {name} sets labels in rayStartParams"
    if group.get("minReplicas", 0) > group.get("maxReplicas", 2**31 - 1):
        yield f"group {name} has minReplicas above maxReplicas"


def _fault_tolerance(spec: Values, head_env: Values, parameters: Values, annotations: Values) -> Iterator[str]:
    options = spec.get("gcsFaultToleranceOptions")
    if options is None:
        if "RAY_REDIS_ADDRESS" in head_env and annotations.get("ray.io/ft-enabled") != "true":
            yield "RAY_REDIS_ADDRESS is set without gcsFaultToleranceOptions"
    else:
        if annotations.get("ray.io/ft-enabled"):
            yield "ray.io/ft-enabled and gcsFaultToleranceOptions are both set"
        if annotations.get("ray.io/external-storage-namespace"):
            yield "ray.io/external-storage-namespace is set beside gcsFaultToleranceOptions"
        if parameters.get("redis-password") or {"REDIS_PASSWORD", "RAY_REDIS_ADDRESS"} & head_env.keys():
            yield "Redis is set on the head beside gcsFaultToleranceOptions"
    if parameters.get("redis-username") or "REDIS_USERNAME" in head_env:
        yield "the Redis user is set on the head instead of in gcsFaultToleranceOptions"


def _autoscaling(spec: Values, head: Values, groups: list[Values]) -> Iterator[str]:
    switch = _environment(head).get("RAY_enable_autoscaler_v2")
    if not spec.get("enableInTreeAutoscaling"):
        if switch in ("1", "true"):
            yield "RAY_enable_autoscaler_v2 is set while enableInTreeAutoscaling is false"
        return
    wanted = (spec.get("autoscalerOptions") or {}).get("version")
    if wanted and switch is not None:
        yield "autoscalerOptions.version and RAY_enable_autoscaler_v2 are both set"
    if any(group.get("suspend") for group in groups):
        yield "a worker group is suspended while the autoscaler is on"
    is_v2 = wanted == "v2" if wanted else switch in ("1", "true") or _version(spec) >= _FIRST_WITH_V2
    if is_v2 and any(_pod(group).get("restartPolicy", "Never") != "Never" for group in [head, *groups]):
        yield "restartPolicy is not Never, which autoscaler v2 needs"


def _job(spec: Values) -> Iterator[str]:
    mode, selector = spec.get("submissionMode", "K8sJobMode"), spec.get("clusterSelector")
    cluster = spec.get("rayClusterSpec")
    if not cluster and not selector:
        yield "neither rayClusterSpec nor clusterSelector is set"
    if selector and not selector.get("ray.io/cluster"):
        yield "clusterSelector names no cluster"
    if spec.get("suspend") and (selector or not spec.get("shutdownAfterJobFinishes")):
        yield "suspend needs shutdownAfterJobFinishes and no clusterSelector"
    if mode == "SidecarMode":
        if selector or spec.get("submitterPodTemplate") or spec.get("submitterConfig"):
            yield "SidecarMode takes no clusterSelector, submitterPodTemplate or submitterConfig"
        if _pod((cluster or {}).get("headGroupSpec") or {}).get("restartPolicy", "Never") != "Never":
            yield "the head's restartPolicy is not Never, which SidecarMode needs"
    if (backoff := spec.get("backoffLimit", 0)) < 0 or (backoff > 0 and (selector or mode == "InteractiveMode")):
        yield "backoffLimit is negative, or set with clusterSelector or InteractiveMode"
    for key in ("activeDeadlineSeconds", "preRunningDeadlineSeconds"):
        if spec.get(key, 1) <= 0:
            yield f"{key} is not positive"
    if not _is_mapping(spec.get("runtimeEnvYAML") or "{}"):
        yield "runtimeEnvYAML is no YAML mapping"
    yield from _deletion(spec, cluster or {})


def _deletion(spec: Values, cluster: Values) -> Iterator[str]:
    shuts_down = spec.get("shutdownAfterJobFinishes", False)
    if (ttl := spec.get("ttlSecondsAfterFinished", 0)) < 0 or (ttl > 0 and not shuts_down):
        yield "ttlSecondsAfterFinished is negative, or set without shutdownAfterJobFinishes"
    strategy = spec.get("deletionStrategy")
    if strategy is None:
        return
    rules = strategy.get("deletionRules") or []
    if not rules:
        yield "deletionStrategy has no deletionRules"
    if rules and (shuts_down or "onSuccess" in strategy or "onFailure" in strategy):
        yield "deletionRules stand beside shutdownAfterJobFinishes, onSuccess or onFailure"
    seen: dict[tuple[str, str], int] = {}
    for rule in rules:
        condition, policy = rule["condition"], rule["policy"]
        statuses = [condition[key] for key in ("jobStatus", "jobDeploymentStatus") if condition.get(key)]
        if len(statuses) != 1:
            yield f"the rule {policy} needs exactly one of jobStatus and jobDeploymentStatus"
            continue
        after_s = condition.get("ttlSeconds", 0)
        if after_s < 0 or (statuses[0], policy) in seen:
            yield f"the rule {policy} for {statuses[0]} is there twice, or has a negative ttlSeconds"
        if policy == "DeleteWorkers" and cluster.get("enableInTreeAutoscaling"):
            yield "DeleteWorkers does not go with autoscaling"
        if policy in ("DeleteWorkers", "DeleteCluster") and spec.get("clusterSelector"):
            yield f"{policy} does not go with clusterSelector"
        seen[statuses[0], policy] = after_s
    for status in {status for status, _ in seen}:
        times_s = [seen[status, policy] for policy in _DELETION_ORDER if (status, policy) in seen]
        if times_s != sorted(times_s):
            yield f"for {status} workers, cluster and job must be deleted in this order"


def _service(spec: Values) -> Iterator[str]:
    cluster, strategy = spec.get("rayClusterConfig") or {}, spec.get("upgradeStrategy") or {}
    service = (cluster.get("headGroupSpec") or {}).get("headService") or {}
    if (service.get("metadata") or {}).get("name"):
        yield "headService has a name"
    if strategy.get("type", "None") not in _UPGRADES:
        yield f"upgradeStrategy.type is {strategy['type']}, not one of {', '.join(_UPGRADES)}"
    if spec.get("rayClusterDeletionDelaySeconds", 0) < 0:
        yield "rayClusterDeletionDelaySeconds is negative"
    if not _is_mapping(spec.get("serveConfigV2") or ""):
        yield "serveConfigV2 is no YAML mapping"
    if strategy.get("type") == _UPGRADES[0]:
        options = strategy.get("clusterUpgradeOptions") or {}
        if not cluster.get("enableInTreeAutoscaling"):
            yield "an incremental upgrade needs enableInTreeAutoscaling"
        surge, step = options.get("maxSurgePercent", 100), options.get("stepSizePercent", -1)
        if (
            not 0 <= step <= surge <= 100
            or options.get("intervalSeconds", 0) <= 0
            or not options.get("gatewayClassName")
        ):
            yield "clusterUpgradeOptions needs stepSizePercent <= maxSurgePercent, intervalSeconds and gatewayClassName"


def _pod(group: Values) -> Values:
    return (group.get("template") or {}).get("spec") or {}


def _environment(group: Values) -> Values:
    containers = _pod(group).get("containers") or [{}]
    return {item["name"]: item.get("value") for item in containers[0].get("env") or []}


def _version(spec: Values) -> tuple[int, int]:
    match = re.match(r"(\d+)\.(\d+)", spec.get("rayVersion") or "0.0")
    return (int(match[1]), int(match[2])) if match else (0, 0)


def _is_mapping(text: str) -> bool:
    try:
        return isinstance(yaml.safe_load(text), dict)
    except yaml.YAMLError:
        return False
