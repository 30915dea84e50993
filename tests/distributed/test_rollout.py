"""A new version on a real Ray Serve behind HAProxy, while clients are at work."""

from __future__ import annotations

import collections
import concurrent.futures
import threading
import time
from collections.abc import Iterator

import httpx
import pytest
from tests.distributed.test_serving import Service, publish, wait_for

from recurra.orchestration.local_cluster import LocalCluster
from recurra.registry.registry import Registry
from recurra.serving.client import Client
from recurra.serving.config import CanaryConfig, ServeConfig

pytestmark = pytest.mark.ray

RATE = 100
"""Predictions a second."""
SERVE = ServeConfig(replicas=1, cpus_per_replica=0.5, slots=32, deterministic=True, max_wait_s=30.0)
"""A new replica's imports can hold the old one up for a second here: requests are to wait then, and not to be refused."""
GREEDY = {"max_tokens": 4, "temperature": 0}


@pytest.fixture(scope="module")
def service(ray_cluster: LocalCluster) -> Iterator[Service]:
    registry_url = "s3://recurra/rollout-test/registry"
    publish(registry_url)
    service = Service(ray_cluster, registry_url)
    service.deploy(SERVE)
    yield service
    service.api.undeploy("lm")


def ask_steadily(service: Service, over: threading.Event) -> list[tuple[int, str]]:
    """Status and digest of each of `RATE` predictions a second, sent on time whatever the others do; no retries."""
    found: list[tuple[int, str]] = []

    def ask() -> tuple[int, str]:
        answer = http.post("/v1/predict/lm", json={"instances": [{"prompt": "def "}]})
        return answer.status_code, answer.json().get("digest", answer.text) if answer.text[:1] == "{" else answer.text

    limits = httpx.Limits(max_connections=64, max_keepalive_connections=64)
    with (
        httpx.Client(base_url=service.url, timeout=120, limits=limits) as http,
        concurrent.futures.ThreadPoolExecutor(64) as pool,
    ):
        begin, sent, waiting = time.monotonic(), 0, collections.deque()
        while not over.is_set():
            while sent < RATE * (time.monotonic() - begin):
                waiting.append(pool.submit(ask))
                sent += 1
            over.wait(0.005)
        found = [future.result() for future in waiting]
    assert sent >= 0.9 * RATE * 5
    return found


def predict(service: Service) -> str:
    """The digest of the bundle that answers."""
    answer = service.client.post("/v1/predict/lm", json={"instances": [{"prompt": "def "}]})
    return str(answer.raise_for_status().json()["digest"])


def talk(service: Service, over: threading.Event) -> tuple[str, list[list[int]]]:
    """The digest and all that a session said, one step after the other until it is over; no retries."""
    with Client(service.url, tries=1, timeout_s=120) as client:
        session = client.session()
        said: list[list[int]] = []
        while not over.is_set():
            before = session.number
            answer = session.step({"text": "x = "}, generate=GREEDY)
            assert answer["step"] == before + 4 + (before == 0) + len(answer["generated"]["tokens"])
            said.append(answer["generated"]["tokens"])
            time.sleep(0.1)
        return answer["digest"], said


def test_an_update_under_load_fails_no_request_and_loses_no_step(service):
    """The one replica is replaced, by one that tries a candidate out, too, while 100 predictions a second and live sessions
    go on: nobody notices but by the digest. The candidate is then rolled back, and no replica is replaced for it."""
    old = Registry(service.registry_url).resolve("lm@production")
    new = publish(service.registry_url, seed=2)
    candidate = publish(service.registry_url, seed=3, alias="candidate")
    canary = CanaryConfig(model="lm@candidate", share=0.2)
    over = threading.Event()
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        asking = pool.submit(ask_steadily, service, over)
        talking = [pool.submit(talk, service, over) for _ in range(8)]
        time.sleep(2)
        begin = time.monotonic()
        try:
            service.deploy(SERVE.model_copy(update={"canary": canary}))
            took_s = time.monotonic() - begin
            wait_for(lambda: len(service.replica_urls()) == service.replicas() == 1, 120)  # the old one has gone
            time.sleep(2)
        finally:
            over.set()
        answers = asking.result()
        talks = [future.result() for future in talking]
    replicas = service.replica_urls()
    Registry(service.registry_url).take_back("lm", "candidate", candidate, new, "by hand")
    wait_for(lambda: {predict(service) for _ in range(40)} == {new}, 120)

    print(f"{len(answers)} predictions, {sum(len(said) for _, said in talks)} steps; the update took {took_s:.1f} s")
    assert collections.Counter(status for status, _ in answers) == {200: len(answers)}, answers
    assert {digest for _, digest in answers} == {old, new, candidate}
    assert service.replica_urls() == replicas
    longest = max((said for _, said in talks), key=len)
    assert all(digest == old and said == longest[: len(said)] for digest, said in talks)
    assert min(len(said) for _, said in talks) >= 2
