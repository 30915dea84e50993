"""Requests a second of one LSTM classifier behind Recurra and behind its peers.

Vocabulary 1000, embedding 128, hidden 256, 32 tokens a request; the same weights, the same client, one server at a time,
turn by turn, medians. Recurra runs as it is deployed: Ray Serve, HAProxy, registry, key check, metrics. The peers have
batching on and virtual environments of their own. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
import venv
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from recurra.data.vocabulary import WordVocabulary
from recurra.models.config import ModelConfig
from recurra.models.reader import build_reader
from recurra.models.sequence import SequenceModel
from recurra.models.stepper import build_stepper
from recurra.models.weights import save_weights
from recurra.orchestration.deploy import ServeApi
from recurra.orchestration.local_cluster import ClusterOptions, LocalCluster
from recurra.registry.bundle import BundleParts
from recurra.registry.registry import Registry
from recurra.serving.config import ServeConfig
from recurra.serving.run import ServeRun
from recurra.tasks.classification import ClassificationConfig, ClassificationTask

HERE = Path(__file__).parent
PEERS = HERE / "serve_peers"
sys.path.insert(0, str(HERE))
import serve_client

TOKENS = 32
CLIENTS = (1, 32, 128)
JUDGED = 32
"""Clients of the run whose rates are compared."""


@dataclass(frozen=True)
class Peer:
    """A server of others."""

    name: str
    packages: tuple[str, ...]
    command: tuple[str, ...]
    health: str
    body: str
    """What a request looks like; TOKENS stands for the list."""
    workers: int = 1


PEER_LIST = (
    Peer(
        "fastapi",
        ("fastapi==0.165.0", "uvicorn[standard]==0.54.0"),
        ("fastapi_app.py",),
        "/health",
        '{"tokens": TOKENS}',
    ),
    Peer(
        "fastapi_2_workers",
        ("fastapi==0.165.0", "uvicorn[standard]==0.54.0"),
        ("fastapi_app.py",),
        "/health",
        '{"tokens": TOKENS}',
        workers=2,
    ),
    Peer("litserve", ("litserve==0.2.19",), ("litserve_app.py",), "/health", '{"tokens": TOKENS}'),
    Peer(
        "bentoml",
        ("bentoml==1.4.39",),
        ("-m", "bentoml", "serve", "bentoml_app:Service", "--port"),
        "/readyz",
        '{"tokens": [TOKENS]}',
    ),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each measurement")
    parser.add_argument("--only", nargs="*", help="names of servers")
    parser.add_argument("--venvs", type=Path, default=Path(tempfile.gettempdir()) / "recurra-bench-venvs")
    options = parser.parse_args()
    os.environ.setdefault("RAY_worker_niceness", "0")  # as the peers have it: Ray's own default is 15
    with tempfile.TemporaryDirectory(prefix="recurra-bench-") as folder:
        work = Path(folder)
        model, task = make_model()
        weights = work / "plain.safetensors"
        save_file(plain_weights(model), weights)
        servers = {"recurra": lambda: recurra_server(work, model, task)}
        for peer in PEER_LIST:
            servers[peer.name] = lambda peer=peer: peer_server(peer, weights, options.venvs)
        if options.only:
            servers = {name: servers[name] for name in options.only}
        ceiling = ceiling_rate(model)
        print(f"the model alone, batch 32, one thread: {ceiling:.0f} sequences/s", flush=True)
        rounds = [measure_all(servers, options.seconds, number) for number in range(options.rounds)]
    print_summary(rounds, ceiling)


def make_model() -> tuple[SequenceModel, ClassificationTask]:
    vocabulary = WordVocabulary([f"w{index}" for index in range(997)])
    task = ClassificationTask(ClassificationConfig(), ["no", "yes"], vocabulary, None)
    torch.manual_seed(0)
    return task.build_model(ModelConfig(cell="lstm", hidden_size=256, embedding_size=128)).eval(), task


def plain_weights(model: SequenceModel) -> dict[str, torch.Tensor]:
    """Under the names that torch's own modules give them."""
    cell = model.core.cell("0")
    return {
        "embedding.weight": model.embedding.weight.detach().clone(),
        "lstm.weight_ih_l0": cell.weight_ih.detach().clone(),
        "lstm.weight_hh_l0": cell.weight_hh.detach().clone(),
        "lstm.bias_ih_l0": cell.bias_ih.detach().clone(),
        "lstm.bias_hh_l0": cell.bias_hh.detach().clone(),
        "head.weight": model.head.weight.detach().clone(),
        "head.bias": model.head.bias.detach().clone(),
    }


def ceiling_rate(model: SequenceModel) -> float:
    """Sequences a second of nothing but the model, by the faster of torch and the kernel that the engine reads with."""
    torch.set_num_threads(1)
    rows = list(torch.randint(0, 1000, (32, TOKENS)).numpy())
    inputs = torch.from_numpy(np.stack(rows))
    slots = model.zero_state(1)
    reader = build_reader(model, slots, 0, build_stepper(model, slots))
    with torch.inference_mode():
        return max(rate_of(lambda: model(inputs)), rate_of(lambda: reader.read(rows, [-1] * len(rows), every=False)))


def rate_of(read: Callable[[], object]) -> float:
    """Sequences a second, in batches of 32."""
    for _ in range(10):
        read()
    begin, count = time.perf_counter(), 0
    while time.perf_counter() - begin < 2:
        read()
        count += 32
    return count / (time.perf_counter() - begin)


@contextmanager
def recurra_server(work: Path, model: SequenceModel, task: ClassificationTask) -> Iterator[tuple[int, list[bytes]]]:
    """Port and requests of the deployed service."""
    registry = f"file://{work}/store/registry"
    parts = BundleParts(
        task=task.describe(),
        model=model.config.model_dump(mode="json"),
        shape=asdict(model.shape),
        state_spec=model.state_spec.to_json(),
    )
    Registry(registry).publish("clf", parts, save_weights(model), alias="production")
    run = ServeRun(name="clf", model="clf@production", registry=registry, serve=ServeConfig())
    with LocalCluster(Path(tempfile.mkdtemp(dir=work)), ClusterOptions(num_cpus=2)) as cluster:
        port = cluster.record.ports.http
        ServeApi(cluster.dashboard_url).deploy(run, http_port=port, timeout_s=180, progress=lambda _: None)
        yield port, requests_of("/v1/predict/clf", '{"instances": [{"tokens": TOKENS}]}', port)


@contextmanager
def peer_server(peer: Peer, weights: Path, venvs: Path) -> Iterator[tuple[int, list[bytes]]]:
    """Port and requests of a peer, started from its own virtual environment."""
    python = peer_python(peer, venvs)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {
        **os.environ,
        "BENCH_WEIGHTS": str(weights),
        "BENCH_PORT": str(port),
        "BENCH_WORKERS": str(peer.workers),
        "OMP_NUM_THREADS": "1",
        "BENTOML_DO_NOT_TRACK": "1",
    }
    command = [str(python), *peer.command, *([str(port)] if peer.command[-1] == "--port" else [])]
    with (weights.parent / f"{peer.name}.log").open("wb") as log:
        process = subprocess.Popen(command, cwd=PEERS, env=environment, stdout=log, stderr=log, start_new_session=True)
        try:
            wait_until_up(f"http://127.0.0.1:{port}{peer.health}", process, Path(log.name))
            yield port, requests_of("/predict", peer.body, port)
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def peer_python(peer: Peer, venvs: Path) -> Path:
    """The interpreter of the peer's environment, which is made the first time."""
    folder = venvs / "-".join(package.replace("[standard]", "") for package in peer.packages)
    python = folder / "bin" / "python"
    done = folder / "installed"
    if not done.exists():
        print(f"installing {', '.join(peer.packages)} into {folder}", flush=True)
        venv.create(folder, with_pip=True, clear=True)
        torch_version = torch.__version__.partition("+")[0]
        packages = [f"torch=={torch_version}", "numpy", "safetensors", *peer.packages]
        subprocess.run(
            [python, "-m", "pip", "install", "--quiet", "--no-compile", "--disable-pip-version-check", *packages],
            check=True,
        )
        done.touch()
    return python


def wait_until_up(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    until = time.monotonic() + 120
    while True:
        try:
            with urllib.request.urlopen(url, timeout=2):
                return
        except OSError:
            if process.poll() is not None or time.monotonic() > until:
                raise SystemExit(f"The server did not start. End of {log}:\n{log.read_text()[-2000:]}") from None
            time.sleep(0.2)


def requests_of(path: str, body: str, port: int) -> list[bytes]:
    generator = torch.Generator().manual_seed(1)
    bodies = [
        body.replace("TOKENS", json.dumps(torch.randint(0, 1000, (TOKENS,), generator=generator).tolist()))
        for _ in range(64)
    ]
    return [serve_client.request_bytes("127.0.0.1", port, path, text.encode()) for text in bodies]


def measure_all(servers: dict, seconds: float, number: int) -> dict[str, dict[int, tuple[float, float, float]]]:
    """One round: for each server and number of clients, requests a second and the 50th and 99th percentile in ms."""
    found: dict[str, dict[int, tuple[float, float, float]]] = {}
    for name, start in servers.items():
        found[name] = {}
        with start() as (port, requests):
            serve_client.run("127.0.0.1", port, requests, 32, 2.0)
            for clients in CLIENTS:
                report = serve_client.run("127.0.0.1", port, requests, clients, seconds)
                if report.failures:
                    print(f"{name}, {clients} clients: {report.failures}", flush=True)
                found[name][clients] = (report.rate, report.percentile_ms(50), report.percentile_ms(99))
        rates = ", ".join(
            f"{clients} clients {rate:.0f}/s p50 {p50:.1f} ms" for clients, (rate, p50, _) in found[name].items()
        )
        print(f"round {number + 1}: {name}: {rates}", flush=True)
    return found


def print_summary(rounds: list[dict[str, dict[int, tuple[float, float, float]]]], ceiling: float) -> None:
    names = list(rounds[0])
    middle = {
        name: {
            clients: tuple(statistics.median(r[name][clients][index] for r in rounds) for index in range(3))
            for clients in CLIENTS
        }
        for name in names
    }
    print("\n| server | clients | requests/s | p50 ms | p99 ms |\n|---|---|---|---|---|")
    for name in names:
        for clients, (rate, p50, p99) in middle[name].items():
            print(f"| {name} | {clients} | {rate:.0f} | {p50:.2f} | {p99:.2f} |")
    result: dict[str, object] = {
        "bench": "serve",
        "rounds": len(rounds),
        "ceiling_rps": round(ceiling),
        "rps": {name: round(middle[name][JUDGED][0]) for name in names},
    }
    peers = {name: middle[name][JUDGED][0] for name in names if name != "recurra"}
    if "recurra" in middle and peers:
        best = max(peers, key=lambda name: peers[name])
        result["best_peer"] = best
        result["classify_rps_ratio"] = round(middle["recurra"][JUDGED][0] / peers[best], 2)
        result["ceiling_share"] = round(middle["recurra"][128][0] / ceiling, 2)
        if "fastapi" in middle:
            result["p50_1client_over_fastapi"] = round(middle["recurra"][1][1] / middle["fastapi"][1][1], 2)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
