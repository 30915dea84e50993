"""Sessions on three Ray nodes while whole nodes are lost, the head among them: nothing acknowledged is lost.

`make test-nodes` runs it, alone: Ray gives a node 30 s to start, which beside other tests it does not always manage on two cores.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator

import httpx
import pytest
from ray.util import state
from tests.distributed.test_serving import Service, publish, wait_for

from recurra.errors import RecurraError
from recurra.orchestration.local_cluster import ClusterOptions, LocalCluster
from recurra.serving.client import Client
from recurra.serving.config import ServeConfig
from recurra.storage.server import EmbeddedServer

pytestmark = [
    pytest.mark.ray,
    pytest.mark.skipif(
        "RECURRA_TEST_NODES" not in os.environ, reason="wants a machine of its own: make test-nodes runs it"
    ),
]

SERVE = ServeConfig(
    replicas=2, cpus_per_replica=1, threads=1, slots=32, deterministic=True, sessions={"vault": {"flush_s": 3600.0}}
)
GREEDY = {"max_tokens": 4, "temperature": 0}
SESSIONS = 6


@pytest.fixture(scope="module")
def cluster(s3_server: EmbeddedServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    """A head without work of its own, as on Kubernetes, that keeps its tables on disk."""
    options = ClusterOptions(num_cpus=0, environment=s3_server.environment(), ends_with_us=True, durable=True)
    cluster = LocalCluster(tmp_path_factory.mktemp("nodes"), options).start()
    yield cluster
    cluster.stop()


class Talks:
    """Sessions that step all the time through the ingress of one node, each from its own thread."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._over = threading.Event()
        self.said: list[list[list[int]]] = [[] for _ in range(SESSIONS)]
        self.failed: list[Exception] = []
        self._threads = [threading.Thread(target=self._talk, args=(said,), daemon=True) for said in self.said]
        for thread in self._threads:
            thread.start()

    def end(self) -> None:
        """Let each session finish its step, then see that none failed and that all said the same."""
        self._over.set()
        for thread in self._threads:
            thread.join()
        assert not self.failed
        longest = max(self.said, key=len)
        assert all(said == longest[: len(said)] for said in self.said)

    def go_on(self, timeout_s: float = 120.0) -> float:
        """Wait until each session has been answered twice more; seconds that it took."""
        begin = time.monotonic()
        wanted = [len(said) + 2 for said in self.said]
        wait_for(lambda: all(len(said) >= n for said, n in zip(self.said, wanted, strict=True)), timeout_s)
        return time.monotonic() - begin

    def _talk(self, said: list[list[int]]) -> None:
        try:
            with Client(self._url, tries=60, timeout_s=30) as client:
                session = client.session()
                while not self._over.is_set():
                    before = session.number
                    answer = session.step({"text": "x = "}, generate=GREEDY)
                    assert answer["step"] == before + 4 + (before == 0) + len(answer["generated"]["tokens"])
                    said.append(answer["generated"]["tokens"])
                    time.sleep(0.05)
        except (RecurraError, AssertionError) as exc:
            self.failed.append(exc)


def ingress(cluster: LocalCluster, node: int) -> str:
    """Where the HAProxy of a further node listens."""
    return f"http://127.0.0.1:{cluster.record.ports.of_node(node).http}"


def answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health/ready", timeout=5).is_success
    except httpx.HTTPError:
        return False


def nodes_of(cluster: LocalCluster, class_name: str) -> list[str]:
    """The node of each live actor of a class."""
    filters = [("state", "=", "ALIVE"), ("class_name", "=", class_name)]
    return [actor.node_id for actor in state.list_actors(cluster.dashboard_url, filters=filters)]


def apart(cluster: LocalCluster) -> bool:
    """Whether both shards of the vault live, on different nodes, and not at the head."""
    (head,) = nodes_of(cluster, "ServeController")
    places = set(nodes_of(cluster, "ShardActor"))
    return len(places) == 2 and head not in places


def test_sessions_outlive_the_head_and_a_node(cluster):
    """SIGKILL to all processes of the head, and after it is back to all of a node with a replica and a shard. Sessions step
    through another node's ingress all the time, also while there is no head; states are flushed once an hour, so that
    the store cannot stand in for the vault."""
    cluster.add_node(1)
    second = cluster.add_node(1)
    registry_url = "s3://recurra/nodes-test/registry"
    publish(registry_url)
    service = Service(cluster, registry_url)
    service.deploy(SERVE)
    here = ingress(cluster, 1)
    wait_for(lambda: answers(here), 120)
    talks = Talks(here)
    try:
        talks.go_on()
        wait_for(lambda: apart(cluster), 120)
        talks.go_on()

        cluster.kill_node(cluster.record.pid)
        without_head_s = talks.go_on()
        cluster.restart_head()
        print("the head is back")
        wait_for(lambda: service.replicas() == 2 and answers(service.url), 240)
        print("Serve is back")
        talks.go_on()

        cluster.kill_node(second)
        after_node_s = talks.go_on()
        cluster.add_node(1)
        wait_for(lambda: service.replicas() == 2 and apart(cluster), 240)
        talks.go_on()
    finally:
        talks.end()
    print(f"two steps of each took {without_head_s:.1f} s without a head, {after_node_s:.1f} s after the node's death")
