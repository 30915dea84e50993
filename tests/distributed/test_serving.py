"""The service on a real Ray Serve with HAProxy and direct ingress."""

from __future__ import annotations

import concurrent.futures
import json
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import httpx
import pytest
import torch
from safetensors.torch import load
from websockets.sync.client import connect

from recurra.data.vocabulary import ByteVocabulary
from recurra.models.config import ModelConfig
from recurra.models.weights import save_weights
from recurra.orchestration.deploy import ServeApi
from recurra.orchestration.local_cluster import LocalCluster
from recurra.orchestration.ports import REPLICA_PORTS
from recurra.orchestration.release import released
from recurra.registry.bundle import BundleParts
from recurra.registry.registry import Registry
from recurra.serving.client import Client, Session
from recurra.serving.config import ServeConfig
from recurra.serving.run import ServeRun
from recurra.serving.scaling import AutoscalingConfig
from recurra.tasks.language_model import LanguageModelConfig, LanguageModelTask

pytestmark = pytest.mark.ray

BYTES = ByteVocabulary()
LEAVING_S = 20.0
"""Longest wait for text while a replica leaves, on a slow machine that is busy with other tests; below 2 s on one that is not."""
PATIENCE_S = 120.0
"""For one answer: the first session waits for the processes of the vault to start."""
SERVE = ServeConfig(replicas=2, cpus_per_replica=0.5, slots=32, sessions={"trust_s": 1.0, "on_update": "replay"})
SCALED = SERVE.model_copy(
    update={
        "replicas": (0, 2),
        "autoscaling": AutoscalingConfig(target_load=0.25, downscale_delay_s=6, idle_s=3),
        "deterministic": True,
    }
)


def publish(registry_url: str, seed: int = 1, alias: str = "production") -> str:
    """A small untrained byte-level model of the name `lm`; its digest."""
    task = LanguageModelTask(LanguageModelConfig(), BYTES)
    torch.manual_seed(seed)
    model = task.build_model(ModelConfig(cell="gru", hidden_size=32))
    parts = BundleParts(
        task=task.describe(),
        model=model.config.model_dump(mode="json"),
        shape=asdict(model.shape),
        state_spec=model.state_spec.to_json(),
    )
    return Registry(registry_url).publish("lm", parts, save_weights(model), alias=alias)


class Service:
    """The deployed application, as a client sees it, and the cluster's view of it."""

    def __init__(self, cluster: LocalCluster, registry_url: str) -> None:
        self.cluster = cluster
        self.registry_url = registry_url
        self.api = ServeApi(cluster.dashboard_url)
        self.url = cluster.serve_url
        self.client = httpx.Client(base_url=self.url, timeout=PATIENCE_S)

    def deploy(self, serve: ServeConfig) -> None:
        run = ServeRun(name="lm", model="lm@production", registry=self.registry_url, serve=serve)
        run = released(run, Registry(self.registry_url))
        self.api.deploy(run, http_port=self.cluster.record.ports.http, timeout_s=300, progress=print)
        wait_for(lambda: len(self.replica_urls()) >= serve.replica_range[0], 120)

    def replicas(self) -> int:
        (status,) = [status for status in self.api.statuses() if status.name == "lm"]
        return status.replicas.get("RUNNING", 0)

    def replica_urls(self) -> list[str]:
        """Where the replicas listen themselves, behind HAProxy."""
        first = self.cluster.record.ports.replica_http
        return [
            url for port in range(first, first + REPLICA_PORTS) if is_ready(url := f"http://127.0.0.1:{port}", port)
        ]


def is_ready(url: str, port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(0.2)
        if probe.connect_ex(("127.0.0.1", port)) != 0:
            return False
    try:
        return httpx.get(f"{url}/health/ready", timeout=20).status_code == 200
    except httpx.HTTPError:
        return False


def wait_for(condition, timeout_s: float) -> None:
    until = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < until, "It did not happen in time."
        time.sleep(0.2)


def stream_until(service: Service, over) -> tuple[set[str], float]:
    """What sessions say in streams, one after the other, until it is over, and the longest wait for a piece in seconds."""
    texts, longest_s = set(), 0.0
    with Client(service.url) as client:
        while not over():
            session = client.session()
            text, heard_s = "", time.monotonic()
            for piece in session.stream({"prompt": "def "}, max_tokens=1000, temperature=0):
                text, now_s = text + piece, time.monotonic()
                longest_s, heard_s = max(longest_s, now_s - heard_s), now_s
            texts.add(text)
            session.delete()
    return texts, longest_s


class Talk:
    """A session that goes on step by step, with what it generates, through whatever is deployed meanwhile."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self.session = client.session()
        self.tokens: list[int] = [BYTES.bos]
        """All that it has read."""
        self.answers: list[dict[str, Any]] = []

    def step(self) -> dict[str, Any]:
        answer = self.session.step({"text": "x = "}, generate={"max_tokens": 4, "temperature": 0})
        self.tokens += [*BYTES.encode("x = ").tolist(), *answer["generated"]["tokens"]]
        self.answers.append(answer)
        return answer

    def go_on(self, over: threading.Event) -> None:
        while not over.is_set():
            self.step()
            time.sleep(0.1)

    def twin(self) -> Session:
        """A session that begins now and reads the same."""
        return self._client.session({"tokens": self.tokens})


def counted(client: httpx.Client) -> int:
    """Prediction requests answered by the whole fleet."""
    lines = client.get("/metrics").raise_for_status().text.splitlines()
    wanted = ("recurra_requests_total", 'endpoint="predict"', 'model="lm"')
    return sum(int(float(line.split()[-1])) for line in lines if all(part in line for part in wanted))


@pytest.fixture(scope="module")
def service(ray_cluster: LocalCluster) -> Iterator[Service]:
    registry_url = "s3://recurra/serving-test/registry"
    publish(registry_url)
    service = Service(ray_cluster, registry_url)
    service.deploy(SERVE)
    yield service
    service.api.undeploy("lm")


def test_the_deployed_application_answers_everything(service):
    """The whole way: registry in S3, Ray Serve, HAProxy, a stream that comes in parts."""
    models = service.client.get("/v1/models").json()["data"]
    prediction = service.client.post("/v1/predict/lm", json={"instances": [{"prompt": "def "}]})
    ask = {"model": "lm", "prompt": "import", "max_tokens": 200, "temperature": 0, "seed": 1}
    whole = service.client.post("/v1/completions", json=ask).json()["choices"][0]["text"]
    with service.client.stream("POST", "/v1/completions", json={**ask, "stream": True}) as response:
        lines = [line.removeprefix("data: ") for line in response.iter_lines() if line]
    unknown = service.client.get("/v1/nothing")

    assert [model["id"] for model in models] == ["lm"]
    assert len(prediction.json()["predictions"][0]["next"]) == 5
    assert lines[-1] == "[DONE]" and len(lines) > 3
    assert "".join(json.loads(line)["choices"][0]["text"] for line in lines[:-1]) == whole
    assert unknown.json()["error"]["code"] == "route_not_found"


def test_500_requests_to_two_replicas_are_500_in_metrics(service):
    """One scrape target tells the truth about the fleet, at once and exactly, whichever replica is asked."""
    assert len(service.replica_urls()) == 2
    before = counted(service.client)

    def ask(_: int) -> int:
        return service.client.post("/v1/predict/lm", json={"instances": [{"prompt": "a"}]}).status_code

    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        statuses = list(pool.map(ask, range(500)))

    assert statuses == [200] * 500
    assert counted(service.client) - before == 500
    for url in service.replica_urls():
        with httpx.Client(base_url=url, timeout=PATIENCE_S) as direct:
            assert counted(direct) - before == 500


def test_a_session_goes_on_at_another_replica(service):
    """No replica owns a session: the other one finds its state in the store, and the answer is the same."""
    one, other = service.replica_urls()
    id = httpx.post(f"{one}/v1/sessions", timeout=PATIENCE_S).json()["id"]
    step = 0
    for turn, text in enumerate(("def ", "main", "():", "\n")):
        url, body = (one, other)[turn % 2], {"step": step, "input": {"text": text}}
        answer = httpx.post(f"{url}/v1/sessions/{id}/step", json=body, timeout=PATIENCE_S).json()
        step = answer["step"]
    whole = service.client.post("/v1/predict/lm", json={"instances": [{"prompt": "def main():\n"}]}).json()

    assert [n["token"] for n in answer["output"]["next"]] == [n["token"] for n in whole["predictions"][0]["next"]]
    assert answer["output"]["next"][0]["logprob"] == pytest.approx(
        whole["predictions"][0]["next"][0]["logprob"], abs=1e-5
    )


def test_a_session_speaks_over_a_websocket_through_haproxy(service):
    """The upgrade passes HAProxy and Ray's server, and text comes while it is generated."""
    id = service.client.post("/v1/sessions").json()["id"]
    with connect(f"{service.url.replace('http', 'ws')}/v1/sessions/{id}/stream", open_timeout=PATIENCE_S) as socket:
        socket.send(json.dumps({"input": {"text": "def "}, "generate": {"max_tokens": 200, "temperature": 0}}))
        events = [json.loads(socket.recv(timeout=PATIENCE_S))]
        while "step" not in events[-1]:
            events.append(json.loads(socket.recv(timeout=PATIENCE_S)))
        socket.send(json.dumps({"input": {"text": "x"}, "step": events[-1]["step"]}))
        after = json.loads(socket.recv(timeout=PATIENCE_S))

    assert len(events) > 3
    assert [t for event in events[:-1] for t in event["tokens"]] == events[-1]["generated"]["tokens"]
    assert after["step"] == events[-1]["step"] + 1


def test_haproxy_cuts_clients_that_never_finish_what_they_send(service):
    """A head or a body that does not come is answered with 408 before a replica hears of it; 300 connections at once are served."""
    host, _, port = service.url.removeprefix("http://").partition(":")
    head = b"POST /v1/predict/lm HTTP/1.1\r\nHost: x\r\n"
    slow = [socket.create_connection((host, int(port)), timeout=PATIENCE_S) for _ in range(2)]
    slow[0].sendall(head)
    slow[1].sendall(head + b"Content-Length: 100\r\n\r\n{")
    many = [socket.create_connection((host, int(port)), timeout=PATIENCE_S) for _ in range(300)]
    for connection in many:
        connection.sendall(b"GET /health/ready HTTP/1.1\r\nHost: x\r\n\r\n")
    statuses = {connection.recv(4096)[:13] for connection in many}
    cut = [connection.recv(4096)[:13] for connection in slow]
    for connection in slow + many:
        connection.close()

    assert statuses == {b"HTTP/1.1 200 "}
    assert cut == [b"HTTP/1.1 408 "] * 2


def test_a_client_that_leaves_frees_the_slots(service):
    """Through HAProxy, too, the engine learns that nobody reads any more."""
    ask = {"model": "lm", "prompt": "a", "max_tokens": 1024, "temperature": 0, "stream": True, "n": 16}
    for _ in range(4):
        with httpx.stream("POST", f"{service.url}/v1/completions", json=ask, timeout=PATIENCE_S) as response:
            next(response.iter_raw())

    def all_free() -> bool:
        lines = service.client.get("/metrics").text.splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith("recurra_slots_used{")) == 0

    wait_for(all_free, PATIENCE_S)


@pytest.fixture(scope="module")
def update(service) -> Iterator[tuple[str, str, list[Talk]]]:
    """The old bundle, the new one, and sessions that went on while `SCALED` took its place."""
    old = Registry(service.registry_url).resolve("lm@production")
    new = publish(service.registry_url, seed=2)
    over = threading.Event()
    with Client(service.url) as client, concurrent.futures.ThreadPoolExecutor(3) as pool:
        talks = [Talk(client) for _ in range(3)]
        for talk in talks:
            talk.step()
        going = [pool.submit(talk.go_on, over) for talk in talks]
        try:
            service.deploy(SCALED)
        finally:
            over.set()
        for future in going:
            future.result()
        for talk in talks:
            wait_for(lambda talk=talk: talk.step()["digest"] == new, PATIENCE_S)
        yield old, new, talks


def test_a_session_that_an_update_replays_is_one_that_the_new_bundle_has_read_from_the_start(update):
    """It steps on over the update, its inputs are read again once, and from then on no bit of its state or of its answers is
    another than that of a session which the new bundle was given from its first token on."""
    old, new, talks = update
    for talk in talks:
        before = [answer for answer in talk.answers if answer["digest"] == old]
        after = talk.answers[len(before) :]
        read = before[-1]["step"] - 1  # the state has not seen the token that was generated last
        assert {answer["digest"] for answer in after} == {new}
        assert [answer["replayed"] for answer in talk.answers if answer["replayed"]] == [{"steps": read, "of": read}]
        assert after[0]["replayed"] and after[-1]["step"] == len(talk.tokens)

        both = talk.session, talk.twin()
        assert [one.number for one in both] == [len(talk.tokens)] * 2
        said = [one.step({"text": "q"}, generate={"max_tokens": 8, "temperature": 0}) for one in both]
        assert said[0]["generated"] == said[1]["generated"] and said[0]["output"] == said[1]["output"]
        states = [load(one.snapshot()) for one in both]
        assert states[0].keys() == states[1].keys()
        assert all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())


@pytest.mark.timeout(1200)
def test_replicas_come_under_load_and_go_after_it(service, update):
    """0 -> 1 -> 2 -> 1 -> 0 -> 1, and no request fails on the way. Streams of sessions go on elsewhere where the leaving
    replica ends them; sessions that were begun before there was no replica go on after it."""
    wait_for(lambda: service.replicas() == 0, 300)
    stop = threading.Event()
    statuses: list[int] = []

    def client(seed: int) -> None:
        # Several answers each, so that the engine is full however quick it is beside its clients.
        ask = {"model": "lm", "prompt": "load", "max_tokens": 100, "seed": seed, "n": 4}
        with httpx.Client(base_url=service.url, timeout=120) as http:
            while not stop.is_set():
                statuses.append(http.post("/v1/completions", json=ask).status_code)

    clients = [threading.Thread(target=client, args=(seed,)) for seed in range(16)]
    for thread in clients:
        thread.start()
    try:
        wait_for(lambda: service.replicas() == 2, 300)
    finally:
        stop.set()
        for thread in clients:
            thread.join()
    with Client(service.url) as client:
        sessions = [client.session({"text": "def "}) for _ in range(8)]
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        reading = [pool.submit(stream_until, service, lambda: service.replicas() <= 1) for _ in range(3)]
        wait_for(lambda: service.replicas() <= 1, 300)
        read = [future.result() for future in reading]
    wait_for(lambda: service.replicas() == 0, 300)
    begin = time.monotonic()
    with Client(service.url, timeout_s=120) as client:
        again = [client.session(id=session.id) for session in sessions]
        cold_s = time.monotonic() - begin
        numbers = [session.step({"text": "x"})["step"] for session in again]

    longest_s = max(gap_s for _, gap_s in read)
    print(
        f"longest wait for text {longest_s:.2f} s while a replica left; {cold_s:.1f} s from nothing to eight sessions"
    )
    assert set(statuses) == {200}
    assert len(set().union(*(texts for texts, _ in read))) == 1
    assert longest_s < LEAVING_S
    assert numbers == [session.number + 1 for session in sessions]
