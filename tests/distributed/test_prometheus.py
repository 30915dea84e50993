"""A real Prometheus scrapes the fleet, and finds in it what was counted."""

import json
import shutil
import socket
import subprocess
import time
import urllib.parse
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
import yaml

from recurra.telemetry.fleet import FleetReporter, fleet_actor, fleet_exposition
from recurra.telemetry.metrics import Metrics
from recurra.telemetry.table import TABLE

ROOT = Path(__file__).resolve().parents[2]
MODEL = f"m{uuid.uuid4().hex[:8]}"
"""A label that no other test of the session counts under."""

pytestmark = [
    pytest.mark.ray,
    pytest.mark.skipif(shutil.which("prometheus") is None, reason="prometheus is not installed (Debian package)"),
]


@ray.remote(num_cpus=0)
class Replica:
    """A process with every metric of the table, some of them counted up."""

    def __init__(self, model: str) -> None:
        self._metrics = Metrics(model=model, run=model)
        for metric in TABLE:
            labels = {label: "x" for label in metric.labels if label not in ("model", "run")}
            getattr(self._metrics, metric.kind)(metric.name, **labels)
        self._reporter = FleetReporter(self._metrics, "serve")

    def answer(self, requests: int) -> None:
        for _ in range(requests):
            self._metrics.counter("recurra_requests_total", endpoint="predict", status="200").inc()
            self._metrics.histogram("recurra_e2e_request_latency_seconds", endpoint="predict").observe(0.002)
            self._metrics.gauge("recurra_slots_used").set(requests)

    def close(self) -> None:
        self._reporter.close()


@pytest.fixture(scope="module")
def exporter_url(ray_cluster) -> Iterator[str]:
    ray.init(address=ray_cluster.address, namespace="test", log_to_driver=False, logging_level="ERROR")
    yield ray.get(fleet_actor().export.remote("127.0.0.1:0"))
    ray.shutdown()


@pytest.fixture(scope="module")
def replicas(exporter_url):
    made = [Replica.remote(MODEL) for _ in range(2)]
    ray.get([replica.answer.remote(0) for replica in made])
    yield made
    ray.get([replica.close.remote() for replica in made])
    for replica in made:
        ray.kill(replica)


@pytest.fixture(scope="module")
def prometheus(exporter_url, tmp_path_factory) -> Iterator[str]:
    """A Prometheus server with our own configuration and rules; only its target and its pace are this test's."""
    directory = tmp_path_factory.mktemp("prometheus")
    config = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text())
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    (recurra,) = [job for job in config["scrape_configs"] if job["job_name"] == "recurra"]
    recurra["static_configs"] = [{"targets": [urllib.parse.urlsplit(exporter_url).netloc]}]
    config["scrape_configs"] = [recurra]
    (directory / "prometheus.yml").write_text(yaml.safe_dump(config))
    shutil.copy(ROOT / "deploy/prometheus/rules.yml", directory)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen(
        [
            "prometheus",
            f"--config.file={directory}/prometheus.yml",
            f"--storage.tsdb.path={directory}/data",
            f"--web.listen-address=127.0.0.1:{port}",
        ],
        stdout=subprocess.DEVNULL,
        stderr=(directory / "log").open("wb"),
    )
    yield f"http://127.0.0.1:{port}"
    process.terminate()
    process.wait(timeout=20)


def query(server: str, expression: str) -> dict[str, float]:
    """Label values joined -> value, for each sample of an instant query."""
    url = f"{server}/api/v1/query?{urllib.parse.urlencode({'query': expression})}"
    with urllib.request.urlopen(url, timeout=10) as answer:
        result = json.load(answer)["data"]["result"]
    return {
        ",".join(v for k, v in sorted(sample["metric"].items()) if k not in ("instance", "job")): float(
            sample["value"][1]
        )
        for sample in result
    }


def eventually(get, expected, timeout_s: float = 120.0) -> None:
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            found = get()
        except OSError as exc:
            found = exc
        if found == expected:
            return
        assert time.monotonic() < deadline, f"{found} is not {expected}"
        time.sleep(0.2)


def test_a_query_returns_what_all_replicas_counted(prometheus, replicas):
    """One target, two replicas, 500 requests: the counter is 500."""
    selector = f'{{model="{MODEL}",endpoint="predict"}}'
    ray.get([replicas[0].answer.remote(200), replicas[1].answer.remote(300)])

    eventually(lambda: query(prometheus, f"sum(recurra_requests_total{selector})"), {"": 500.0})
    eventually(lambda: query(prometheus, f"sum(recurra_e2e_request_latency_seconds_count{selector})"), {"": 500.0})
    (seconds,) = query(prometheus, f"sum(recurra_e2e_request_latency_seconds_sum{selector})").values()
    assert seconds == pytest.approx(1.0)
    slots = query(prometheus, f'recurra_slots_used{{model="{MODEL}"}}')
    assert sorted(slots.values()) == [200.0, 300.0]


def test_prometheus_sees_only_our_target_and_finds_it_healthy(prometheus, replicas):
    """A target that answers something that is no exposition would be down."""
    eventually(lambda: query(prometheus, "sum(up)"), {"": 1.0})


def test_recorded_series_are_there(prometheus, replicas):
    """The rules of deploy/ are loaded by the same server that scrapes the fleet."""
    eventually(
        lambda: sorted(query(prometheus, f'recurra:requests:rate1m{{model="{MODEL}",endpoint="predict"}}')) != [], True
    )


def test_promtool_has_nothing_against_any_metric(replicas):
    """Names, units, types and help texts of the whole table, as they are exposed."""
    text = fleet_exposition()
    done = subprocess.run(["promtool", "check", "metrics"], check=False, input=text, capture_output=True, text=True)

    assert all(metric.name in text for metric in TABLE)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
