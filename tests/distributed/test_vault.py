"""Sessions on a real cluster while its processes are killed: nothing acknowledged is lost, and no step is taken twice."""

from __future__ import annotations

import concurrent.futures
import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import ray
from ray.exceptions import RayActorError
from ray.util import state
from tests.distributed.test_serving import Service, publish, wait_for

from recurra.orchestration.local_cluster import LocalCluster
from recurra.serving.client import Client
from recurra.serving.config import ServeConfig
from recurra.serving.vault_actors import NAMESPACE, VaultSettings
from recurra.serving.vault_shard import ShardOptions

pytestmark = pytest.mark.ray

SERVE = ServeConfig(
    replicas=2, cpus_per_replica=0.5, slots=32, deterministic=True, sessions={"vault": {"flush_s": 3600.0}}
)
REGISTRY = "s3://recurra/vault-test/registry"
VAULT = VaultSettings("lm-lm", "s3://recurra/vault-test/sessions/lm/vault", 2, ShardOptions(), 1.0)
GREEDY = {"max_tokens": 8, "temperature": 0}
PARTS = ["def ", "main", "(x)", ":\n", "  re", "turn", " x", "\n\n"]


@pytest.fixture(scope="module")
def service(ray_cluster: LocalCluster) -> Iterator[Service]:
    """Two replicas; states are flushed once an hour, so that the store cannot stand in for the vault."""
    publish(REGISTRY)
    service = Service(ray_cluster, REGISTRY)
    service.deploy(SERVE)
    ray.init(ray_cluster.address, namespace="recurra", log_to_driver=False)
    yield service
    service.api.undeploy("lm")
    for index in range(2):
        with contextlib.suppress(ValueError):
            ray.kill(shard(index))
    ray.shutdown()


def shard(index: int):
    return ray.get_actor(VAULT.actor_name(index), NAMESPACE)


def ask_shard(index: int, method: str) -> Any:
    """What it answers; asked again while Ray is still starting it after a death."""
    deadline = time.monotonic() + 300
    while True:
        try:
            return ray.get(getattr(shard(index), method).remote(), timeout=120)
        except RayActorError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)


def wait_until_settled() -> None:
    """Until the vault has got over the death before: what every shard acknowledged is in two places again."""
    for index in range(2):
        ask_shard(index, "settled")


def kill_shard(index: int) -> None:
    """SIGKILL, as the kernel's memory killer does it."""
    wait_until_settled()
    os.kill(ask_shard(index, "pid"), signal.SIGKILL)


def one_of_two(service: Service) -> int:
    """The process of a replica, once there are two: one may have to start in the place of the last one that was killed."""
    wait_for(lambda: len(service.replica_urls()) == 2, 300)
    actors = state.list_actors(
        service.cluster.dashboard_url, filters=[("state", "=", "ALIVE"), ("class_name", "=", "ServeReplica:lm:replica")]
    )
    return min(actor.pid for actor in actors)


def converse(service: Service, pause_s: float = 0.0) -> list[list[int]]:
    with Client(service.url, tries=16, timeout_s=60) as client:
        session = client.session()
        said = []
        for part in PARTS:
            before = session.number
            answer = session.step({"text": part}, generate=GREEDY)
            assert answer["step"] == before + len(part) + (before == 0) + len(answer["generated"]["tokens"])
            said.append(answer["generated"]["tokens"])
            time.sleep(pause_s)
        return said


def test_replicas_and_shards_that_are_killed_lose_and_double_nothing(service):
    """Under load, in mid-session: every session says what it says when nothing happens."""
    wanted = converse(service)
    stop = threading.Event()

    def killer() -> list[float]:
        done = []
        try:
            for kill in (
                lambda: kill_shard(0),
                lambda: os.kill(one_of_two(service), signal.SIGKILL),
                lambda: kill_shard(1),
            ):
                time.sleep(1.5)
                kill()
                done.append(time.monotonic())
        finally:
            stop.set()
        return done

    def client(_: int) -> list[list[list[int]]]:
        said = []
        while not stop.is_set() or len(said) < 2:
            said.append(converse(service, pause_s=0.1))
        return said

    with concurrent.futures.ThreadPoolExecutor(13) as pool:
        kills = pool.submit(killer)
        talks = [talk for result in pool.map(client, range(12)) for talk in result]

    assert len(kills.result()) == 3
    assert all(talk == wanted for talk in talks)


def test_streams_go_on_when_their_replica_is_killed(service):
    """The client reads on at another replica by itself; no character of the text is lost, doubled or changed."""
    victim = one_of_two(service)
    ask = {"max_tokens": 1000, "temperature": 0}
    with Client(service.url) as client:
        wanted = "".join(client.session().stream({"prompt": "def "}, **ask))
        begun = threading.Barrier(7)

        def read(_: int) -> tuple[str, int]:
            session = client.session()
            stream = session.stream({"prompt": "def "}, **ask)
            text = next(stream)
            begun.wait(120)
            return text + "".join(stream), session.number

        with concurrent.futures.ThreadPoolExecutor(6) as pool:
            reading = [pool.submit(read, number) for number in range(6)]
            begun.wait(120)
            os.kill(victim, signal.SIGKILL)
            results = [future.result() for future in reading]

    assert results == [(wanted, 5 + 1000)] * 6
    wait_for(lambda: len(service.replica_urls()) == 2, 300)


def test_a_vault_that_ends_is_found_again_in_the_store(service):
    """Both shards leave in order, as idle ones do: what they flushed is all there for those that come after them."""
    with Client(service.url, tries=16) as client:
        session = client.session()
        number = session.step({"text": "def "}, generate=GREEDY)["step"]
        wait_until_settled()
        for index in range(2):
            ask_shard(index, "flush")
        for index in range(2):
            ray.kill(shard(index), no_restart=True)
        answer = session.step({"text": "main"}, generate=GREEDY)

    assert answer["step"] == number + 4 + 8
