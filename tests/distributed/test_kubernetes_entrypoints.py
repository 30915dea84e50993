"""What Kubernetes would start is started here: the RayJob's entrypoint and the RayService's serveConfigV2, word for
word, on a real local cluster. Only what the kubelet and the operator do is done by the test: the ConfigMap becomes a
folder, the entrypoint is submitted, the Serve document is sent to the dashboard."""

import os
import sys
import time
from pathlib import Path

import httpx
import numpy as np
import pytest
import yaml
from ray.job_submission import JobStatus, JobSubmissionClient

from recurra.config.env import api_key
from recurra.config.load import parse
from recurra.data.schema import Column, SequenceSchema
from recurra.data.vocabulary import ByteVocabulary
from recurra.data.write import DatasetWriter
from recurra.orchestration.job_file import JobFile
from recurra.orchestration.render import render_kubernetes
from recurra.registry.loading import load_model
from recurra.registry.registry import Registry

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]

NAME = "kubernetes"


@pytest.fixture(scope="module")
def base_url(s3_server) -> str:
    return f"s3://recurra/kubernetes-{os.getpid()}"


@pytest.fixture(scope="module")
def manifests(base_url) -> dict[str, dict]:
    """kind -> document of a tiny job over a tiny dataset, as `recurra render k8s` writes them."""
    vocabulary = ByteVocabulary()
    schema = SequenceSchema((Column("tokens", vocabulary.dtype),))
    generator = np.random.default_rng(0)
    with DatasetWriter(f"{base_url}/text", schema, {"vocabulary": vocabulary.to_json()}) as writer:
        for _ in range(64):
            writer.write({"tokens": generator.integers(97, 110, generator.integers(4, 30))})
    job = parse(
        {
            "name": NAME,
            "task": "language_model",
            "data": {"train": f"{base_url}/text", "eval": f"{base_url}/text"},
            "model": {"hidden_size": 16, "embedding_size": 8},
            "train": {"workers": 2, "steps": 8, "global_batch": {"sequences": 8}, "checkpoint_every": {"steps": 4}},
            "publish": {"model": NAME, "alias": "production", "registry": f"{base_url}/registry"},
            "serve": {"route_prefix": f"/{NAME}", "slots": 8, "cpus_per_replica": 0.5},
            "runs": f"{base_url}/runs",
        },
        JobFile,
    )
    return {document["kind"]: document for document in yaml.safe_load_all(render_kubernetes(job))}


@pytest.fixture(scope="module")
def submit(ray_cluster, manifests, tmp_path_factory):
    """Runs the RayJob's entrypoint to its end, as a new attempt of the operator does; gives the driver's log."""
    spec = manifests["RayJob"]["spec"]
    head = spec["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    (mount,), folder = head["containers"][0]["volumeMounts"], tmp_path_factory.mktemp("config-map")
    for name, text in manifests["ConfigMap"]["data"].items():
        (folder / name).write_text(text)
    assert mount["mountPath"] in spec["entrypoint"]
    client = JobSubmissionClient(ray_cluster.dashboard_url)
    # In the image `recurra` is on the path; here it is where this Python is.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"

    def run() -> str:
        job_id = client.submit_job(
            entrypoint=spec["entrypoint"].replace(mount["mountPath"], str(folder)),
            runtime_env={"env_vars": {"PATH": path}},
        )
        wait_until(lambda: client.get_job_status(job_id).is_terminal(), 300)
        log = client.get_job_logs(job_id)
        assert client.get_job_status(job_id) == JobStatus.SUCCEEDED, log
        return log

    return run


@pytest.fixture(scope="module")
def trained(submit) -> str:
    """Log of the first attempt's driver."""
    return submit()


@pytest.fixture(scope="module")
def served(ray_cluster, manifests, trained):
    """Client of the RayService's application, once it is healthy."""
    document = yaml.safe_load(manifests["RayService"]["spec"]["serveConfigV2"])
    # In a pod port 8000 is free; here the cluster was given one.
    document["http_options"]["port"] = ray_cluster.record.ports.http
    applications = f"{ray_cluster.dashboard_url}/api/serve/applications/"
    key = api_key()
    with httpx.Client(trust_env=False, timeout=60) as dashboard:
        put_as_the_operator_does(dashboard, applications, document)

        def status() -> str:
            found = dashboard.get(applications).json()["applications"].get(NAME, {})
            assert found.get("status") != "DEPLOY_FAILED", found
            return found.get("status", "")

        wait_until(lambda: status() == "RUNNING", 400)
        with httpx.Client(
            base_url=f"{ray_cluster.serve_url}/{NAME}",
            headers={"Authorization": f"Bearer {key}"} if key else {},
            trust_env=False,
            timeout=60,
        ) as client:
            yield client
        dashboard.delete(applications).raise_for_status()


def put_as_the_operator_does(dashboard: httpx.Client, applications: str, document: dict) -> None:
    """KubeRay puts the document again at each reconciliation until Serve has taken it; the first may come too early."""
    for _ in range(20):
        answer = dashboard.put(applications, json=document)
        if answer.is_success:
            return
        time.sleep(2.0)
    raise AssertionError(answer.text)


def wait_until(condition, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"it did not come true within {timeout_s} s"
        time.sleep(0.3)


def test_the_rayjobs_entrypoint_trains_and_publishes(trained, base_url):
    """A RayJob that ends with SUCCEEDED without a bundle would leave the RayService with nothing to serve."""
    bundle = load_model(Registry(f"{base_url}/registry"), f"{NAME}@production").bundle

    assert bundle.lineage["step"] >= 1, trained


def test_the_rayservices_application_answers(served):
    """The bundle that the RayJob published is behind the endpoint that the RayService opens."""
    wait_until(lambda: served.get("/health/ready").status_code == 200, 240)
    answer = served.post("/v1/completions", json={"model": NAME, "prompt": "abc", "max_tokens": 4})

    assert answer.status_code == 200, answer.text
    assert answer.json()["usage"]["completion_tokens"] >= 1


def test_its_metrics_count_the_answer(served):
    """The page that the PodMonitor's first target and the application's /metrics show."""
    served.post("/v1/completions", json={"model": NAME, "prompt": "abc", "max_tokens": 4}).raise_for_status()
    text = served.get("/metrics").text
    counted = [
        line for line in text.splitlines() if line.startswith("recurra_requests_total") and 'status="200"' in line
    ]

    assert sum(float(line.rsplit(" ", 1)[1]) for line in counted) >= 1, text[:2000]


def test_a_second_attempt_of_a_run_that_is_done_trains_nothing_new(submit, trained, base_url):
    """An operator that lost the answer submits again, on a new cluster: the run is known by its name."""
    registry = Registry(f"{base_url}/registry")
    first = load_model(registry, f"{NAME}@production").bundle
    submit()
    second = load_model(registry, f"{NAME}@production").bundle

    assert (second.weights_sha256, second.lineage["step"]) == (first.weights_sha256, first.lineage["step"])
