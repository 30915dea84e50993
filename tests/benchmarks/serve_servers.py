"""The servers of bench_serve.py: Recurra as it is deployed, and its peers, each started for one model and stopped after it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import tempfile
import time
import urllib.request
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file

from recurra.data.vocabulary import ByteVocabulary, WordVocabulary
from recurra.models.config import ModelConfig
from recurra.models.sequence import SequenceModel
from recurra.models.weights import save_weights
from recurra.orchestration.deploy import ServeApi
from recurra.orchestration.local_cluster import ClusterOptions, LocalCluster
from recurra.registry.bundle import BundleParts
from recurra.registry.registry import Registry
from recurra.serving.config import ServeConfig
from recurra.serving.run import ServeRun
from recurra.tasks.base import Task
from recurra.tasks.classification import ClassificationConfig, ClassificationTask
from recurra.tasks.language_model import LanguageModelConfig, LanguageModelTask

PEERS = Path(__file__).parent / "serve_peers"
OWN = "recurra"
LETTERS = b" abcdefghijklmnopqrstuvwxyz"
"""What the language model says, so that every token is one character and needs no escape in JSON."""
FASTAPI = ("fastapi==0.165.0", "uvicorn[standard]==0.54.0")


@dataclass(frozen=True)
class Peer:
    """A server of others."""

    name: str
    packages: tuple[str, ...]
    """Of its virtual environment; none = this one, with a Ray cluster as Recurra has it."""
    commands: dict[str, tuple[str, ...]]
    """By model: what to start, or what Ray Serve is to import."""
    health: str = "/health"
    wraps: bool = False
    """Whether a request is a batch of one."""
    workers: int = 1


PEER_LIST = (
    Peer("fastapi", FASTAPI, {"classifier": ("fastapi_app.py",), "language": ("fastapi_app.py",)}),
    Peer("fastapi_2_workers", FASTAPI, {"classifier": ("fastapi_app.py",), "language": ("fastapi_app.py",)}, workers=2),
    Peer("litserve", ("litserve==0.2.19",), {"classifier": ("litserve_app.py",), "language": ("litserve_stream.py",)}),
    Peer(
        "bentoml",
        ("bentoml==1.4.39",),
        {"classifier": ("-m", "bentoml", "serve", "bentoml_app:Service", "--port")},
        "/readyz",
        wraps=True,
    ),
    Peer("ray_batch", (), {"classifier": ("ray_app:build",), "language": ("ray_app:build",)}),
)


def make_model() -> tuple[SequenceModel, ClassificationTask]:
    """The classifier."""
    vocabulary = WordVocabulary([f"w{index}" for index in range(997)])
    task = ClassificationTask(ClassificationConfig(), ["no", "yes"], vocabulary, None)
    torch.manual_seed(0)
    return task.build_model(ModelConfig(cell="lstm", hidden_size=256, embedding_size=128)).eval(), task


def make_language() -> tuple[SequenceModel, LanguageModelTask]:
    """The byte language model, untrained."""
    task = LanguageModelTask(LanguageModelConfig(), ByteVocabulary())
    torch.manual_seed(0)
    model = task.build_model(ModelConfig(cell="lstm", hidden_size=256, embedding_size=128)).eval()
    with torch.no_grad():
        others = torch.ones(256, dtype=torch.bool)
        others[list(LETTERS)] = False
        model.head.bias[others] = -100.0
    return model, task


def write_weights(folder: Path) -> None:
    """Both models under the names that torch's own modules give their weights."""
    folder.mkdir(exist_ok=True)
    for name, model in (("classifier", make_model()[0]), ("language", make_language()[0])):
        cell = model.core.cell("0")
        weights = {
            "embedding.weight": model.embedding.weight,
            "lstm.weight_ih_l0": cell.weight_ih,
            "lstm.weight_hh_l0": cell.weight_hh,
            "lstm.bias_ih_l0": cell.bias_ih,
            "lstm.bias_hh_l0": cell.bias_hh,
            "head.weight": model.head.weight,
            "head.bias": model.head.bias,
        }
        save_file({key: value.detach().clone() for key, value in weights.items()}, folder / f"{name}.safetensors")


@contextmanager
def own_server(work: Path, model: SequenceModel, task: Task, name: str = "clf", *, replicas: int = 1) -> Iterator[int]:
    """Port of the deployed service."""
    registry = f"file://{work}/store/registry"
    parts = BundleParts(
        task=task.describe(),
        model=model.config.model_dump(mode="json"),
        shape=asdict(model.shape),
        state_spec=model.state_spec.to_json(),
    )
    Registry(registry).publish(name, parts, save_weights(model), alias="production")
    run = ServeRun(name=name, model=f"{name}@production", registry=registry, serve=ServeConfig(replicas=replicas))
    with LocalCluster(Path(tempfile.mkdtemp(dir=work)), ClusterOptions(num_cpus=2, ends_with_us=True)) as cluster:
        port = cluster.record.ports.http
        ServeApi(cluster.dashboard_url).deploy(run, http_port=port, timeout_s=180, progress=lambda _: None)
        yield port


@contextmanager
def peer_server(peer: Peer, model: str, weights: Path, venvs: Path) -> Iterator[int]:
    """Port of a peer that serves one model."""
    environment = {"BENCH_WEIGHTS": str(weights), "BENCH_MODEL": model, "OMP_NUM_THREADS": "1"}
    if peer.packages:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        with _process(peer, model, peer_python(peer, venvs), weights, port, environment):
            yield port
        return
    environment |= {"RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "", "PYTHONPATH": str(PEERS)}
    options = ClusterOptions(num_cpus=2, environment=environment, ends_with_us=True)
    with LocalCluster(Path(tempfile.mkdtemp(dir=weights)), options) as cluster:
        port = cluster.record.ports.http
        application = {
            "name": "peer",
            "route_prefix": "/",
            "import_path": peer.commands[model][0],
            "args": {"model": model},
        }
        config = {
            "proxy_location": "HeadOnly",
            "http_options": {"host": "127.0.0.1", "port": port},
            "logging_config": {"enable_access_log": False},
            "applications": [application],
        }
        put_until_taken(f"{cluster.dashboard_url}/api/serve/applications/", config)
        wait_until_up(f"http://127.0.0.1:{port}{peer.health}", None, cluster.log_file)
        yield port


@contextmanager
def _process(
    peer: Peer, model: str, python: Path, weights: Path, port: int, environment: dict[str, str]
) -> Iterator[None]:
    environment = {
        **os.environ,
        **environment,
        "BENCH_PORT": str(port),
        "BENCH_WORKERS": str(peer.workers),
        "BENTOML_DO_NOT_TRACK": "1",
    }
    words = peer.commands[model]
    command = [str(python), *words, *([str(port)] if words[-1] == "--port" else [])]
    with (weights / f"{peer.name}.log").open("wb") as log:
        process = subprocess.Popen(command, cwd=PEERS, env=environment, stdout=log, stderr=log, start_new_session=True)
        try:
            wait_until_up(f"http://127.0.0.1:{port}{peer.health}", process, Path(log.name))
            yield
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


def put_until_taken(url: str, config: object) -> None:
    """Ray's dashboard answers 500 while Serve starts on a busy machine."""
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(url, json.dumps(config).encode(), headers, method="PUT")
    until = time.monotonic() + 180
    while True:
        try:
            return urllib.request.urlopen(request, timeout=120).close()
        except OSError:
            if time.monotonic() > until:
                raise
            time.sleep(2)


def wait_until_up(url: str, process: subprocess.Popen[bytes] | None, log: Path) -> None:
    until = time.monotonic() + 180
    while True:
        try:
            with urllib.request.urlopen(url, timeout=2):
                return
        except OSError:
            if (process is not None and process.poll() is not None) or time.monotonic() > until:
                raise SystemExit(f"The server did not start. End of {log}:\n{log.read_text()[-2000:]}") from None
            time.sleep(0.2)
