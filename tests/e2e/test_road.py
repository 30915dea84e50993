"""The whole road with tiny sizes, every part real: CSV -> S3 -> two Ray Train workers -> registry -> Serve -> HTTP -> metrics."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import yaml
from ray.util import state

from recurra.cli.main import run
from recurra.orchestration.conversation import read_traffic
from recurra.orchestration.local_cluster import LocalCluster
from recurra.registry.bundle import BundleParts
from recurra.registry.registry import Registry

from .conftest import Command, write_reviews

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def job(base_url: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    values = {
        "name": "road",
        "task": "classification",
        "data": {"train": f"{base_url}/train", "eval": f"{base_url}/valid"},
        "model": {"cell": "gru", "hidden_size": 16},
        "train": {
            "workers": 2,
            "steps": 40,
            "learning_rate": 0.02,
            "global_batch": {"sequences": 16},
            "evaluate_every": 20,
        },
        "publish": {"model": "road", "alias": "production", "registry": f"{base_url}/registry"},
        "serve": {"route_prefix": "/road", "cpus_per_replica": 0.5, "slots": 16},
        "runs": f"{base_url}/runs",
    }
    file = tmp_path_factory.mktemp("road") / "job.yaml"
    file.write_text(yaml.safe_dump(values))
    return file


def predictions_counted(client: httpx.Client) -> int:
    """Requests to `predict` that the endpoint's own `/metrics` knows of."""
    traffic = {one.endpoint: one.requests for one in read_traffic(client.get("/metrics").text)}
    return traffic.get("predict", 0)


@pytest.fixture(scope="module")
def left_standing(ray_cluster: LocalCluster) -> Iterator[None]:
    """`wide` goes at the end of the file: with the last application Ray Serve goes, too, and takes half a minute to come back."""
    yield
    assert run(["undeploy", "wide", "--address", ray_cluster.dashboard_url]) == 0


@pytest.mark.usefixtures("left_standing")
def test_an_application_that_cannot_start_shows_the_cause(recurra: Command, job: Path, base_url: str) -> None:
    """The command says so instead of waiting for ever, and others can be deployed beside it."""
    Registry(f"{base_url}/registry").publish(
        "wide", BundleParts({"type": "x"}, {}, {}, []), b"weights", alias="production"
    )
    overrides = ("name=wide", "serve.route_prefix=/wide", "serve.gpus_per_replica=1", "publish.model=wide")
    overrides += ("serve.shutdown_s=1",)  # Serve waits so long for a replica to leave that never came
    outcome = recurra("deploy", job, *(word for one in overrides for word in ("-o", one)), "--timeout", 2)
    assert outcome.code == 7
    assert "not ready after 2 s" in outcome.err


def test_from_a_csv_to_an_endpoint(
    recurra: Command, job: Path, base_url: str, ray_cluster: LocalCluster, tmp_path: Path
) -> None:
    """Each command's output is the next one's input, as it is for a user: one broken joint breaks the road."""
    fields = ("--text", "text", "--label", "liked", "--vocabulary", "words")
    holdout = ("--holdout-url", f"{base_url}/valid", "--holdout", 0.2)
    address = ("--address", ray_cluster.address)
    written = recurra("data", "write", write_reviews(tmp_path), f"{base_url}/train", *fields, *holdout, *address)
    assert written.code == 0, written.err
    assert recurra("data", "verify", f"{base_url}/train").code == 0

    plan = recurra("plan", job, "--json")
    assert plan.code == 0, plan.out
    assert plan.json["cluster"]["CPU"]["total"] == 4

    trained = recurra("train", job, "--json")
    assert trained.code == 0, trained.err
    assert trained.json["metrics"]["accuracy"] > 0.9
    assert trained.json["steps"] == 40
    digest = trained.json["published"]["digest"]
    shown = recurra("models", "show", "road@production", "-r", f"{base_url}/registry", "--json").json
    assert (shown["digest"], shown["lineage"]["run"]) == (digest, "road")

    deployed = recurra("deploy", job, "--port", ray_cluster.record.ports.http, "--json")
    assert deployed.code == 0, deployed.err
    assert (deployed.json["digest"], deployed.json["replicas"]) == (digest, 1)
    (status,) = [one for one in recurra("serve", "status", "--json").json if one["name"] == "road"]
    assert (status["status"], status["route_prefix"]) == ("RUNNING", "/road")

    with httpx.Client(base_url=deployed.json["url"], trust_env=False, timeout=30) as client:
        before = predictions_counted(client)
        body = {"instances": [{"text": "it was good on day 1"}, {"text": "it was bad on day 2"}]}
        for _ in range(5):
            answer = client.post("/v1/predict/road", json=body)
            assert answer.status_code == 200, answer.text
        assert [prediction["label"] for prediction in answer.json()["predictions"]] == ["yes", "no"]
        assert client.post("/v1/predict/road", json={"instances": []}).status_code == 422
        assert predictions_counted(client) - before == 6  # the fleet of the session's cluster has counted others' too

    assert recurra("undeploy", "road").code == 0
    assert "road" not in [one["name"] for one in recurra("serve", "status", "--json").json]
    actors = state.list_actors(ray_cluster.dashboard_url, limit=1000)
    assert not [one for one in actors if (one.name or "").startswith("recurra-vault-road")]  # it had no session


def test_deploying_what_was_never_published_is_one_clear_error(recurra: Command, job: Path) -> None:
    """The cluster would find out a minute later, in a replica's log."""
    outcome = recurra("deploy", job, "-o", "serve.model=road@nobody", "-o", "publish.registry=s3://recurra/empty")
    assert outcome.code == 5
    assert "road" in outcome.err and "Traceback" not in outcome.err
