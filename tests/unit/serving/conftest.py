"""Small real models and an engine that the test ticks by hand."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field

import httpx
import numpy as np
import pytest
import torch
import uvicorn

from recurra.data.vocabulary import ByteVocabulary
from recurra.models.config import ModelConfig
from recurra.models.sequence import ModelShape, SequenceModel
from recurra.serving.app import build_asgi
from recurra.serving.config import ServeConfig
from recurra.serving.engine import Engine, deliver
from recurra.serving.engine_metrics import EngineMetrics
from recurra.serving.lineup import Lineup
from recurra.serving.service import ServedModel, Service
from recurra.serving.session_keeping import fingerprint
from recurra.serving.trial import Trial
from recurra.serving.vault_versions import Shard
from recurra.serving.work import Result, Sequence
from recurra.storage.store import Store
from recurra.storage.url import open_store
from recurra.tasks.classification import ClassificationConfig, ClassificationTask
from recurra.tasks.language_model import LanguageModelConfig, LanguageModelTask
from recurra.telemetry.metrics import Metrics

torch.set_num_threads(1)

VOCABULARY = 17
CELLS = ("rnn", "gru", "lstm", "ntm")


def small_model(cell: str = "lstm", *, per_step: bool = True, features: int | None = None, **settings) -> SequenceModel:
    torch.manual_seed(7)
    if cell == "ntm":
        settings["ntm"] = {"memory_rows": 8, "memory_width": 4}
    config = ModelConfig(cell=cell, hidden_size=12, **settings)
    kind, size = ("tokens", VOCABULARY) if features is None else ("features", features)
    return SequenceModel(config, ModelShape(kind, size, VOCABULARY if per_step else 3, per_step)).eval()


@dataclass
class Clock:
    """Seconds that only the test moves."""

    now: float = 100.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Bench:
    """An engine without a thread, and all that its sequences heard."""

    engine: Engine
    clock: Clock
    metrics: Metrics
    heard: dict[Sequence, list] = field(default_factory=dict)

    def add(self, *sequences: Sequence) -> None:
        for sequence in sequences:
            self.heard[sequence] = []
        self.engine.submit(list(sequences))

    def run(self, ticks: int = 10_000) -> int:
        """Tick until there is nothing to do. Returns the number of ticks that did something."""
        with torch.inference_mode():
            for count in range(ticks):
                if not self.engine.tick():
                    return count
        return ticks

    def result(self, sequence: Sequence) -> Result:
        last = self.heard[sequence][-1]
        assert isinstance(last, Result), last
        return last

    def sequence(self, inputs, **settings) -> Sequence:
        values = np.asarray(inputs)
        values = values.astype(np.int64 if values.dtype.kind in "iu" else np.float32)
        return Sequence(values, lambda which, event: self.heard[which].append(event), **settings)


@pytest.fixture
def bench():
    """Builds a `Bench` around a model."""

    def build(model: SequenceModel, *, text_of=None, **settings) -> Bench:
        clock = Clock()
        metrics = Metrics(model="m")
        config = ServeConfig(**{"slots": 64, **settings})
        engine = Engine(model, config, EngineMetrics(metrics), deliver, text_of, clock)
        return Bench(engine, clock, metrics)

    return build


def tokens_of(rng: np.random.Generator, length: int) -> np.ndarray:
    return rng.integers(0, VOCABULARY, length)


def alone(model: SequenceModel, inputs: np.ndarray) -> np.ndarray:
    """Outputs of one sequence by itself, straight from the model."""
    with torch.inference_mode():
        return model(torch.as_tensor(inputs)[None])[0][0].numpy()


def continued(model: SequenceModel, prompt: np.ndarray, count: int) -> list[int]:
    """Greedy tokens after a prompt, straight from the model's steps."""
    with torch.inference_mode():
        outputs, state = model(torch.as_tensor(prompt)[None])
        logits = outputs[:, -1]
        tokens = []
        for _ in range(count):
            token = logits.argmax(1)
            tokens.append(int(token))
            logits, state = model.step(token, state)
    return tokens


def language_service(store: Store | None = None, *, cell: str = "lstm", **settings) -> Service:
    """A service of a small untrained byte-level language model."""
    task = LanguageModelTask(LanguageModelConfig(), ByteVocabulary())
    torch.manual_seed(3)
    ntm = {"ntm": {"memory_rows": 8, "memory_width": 4}} if cell == "ntm" else {}
    model = task.build_model(ModelConfig(cell=cell, hidden_size=12, **ntm)).eval()
    return service_of(ServedModel("lm", "d" * 64, task, model), store, **settings)


def classifier_service(store: Store | None = None, model: dict | None = None, **settings) -> Service:
    """A service of a small untrained classifier of byte sequences."""
    task = ClassificationTask(ClassificationConfig(), ["bad", "good"], ByteVocabulary(), None)
    torch.manual_seed(3)
    network = task.build_model(ModelConfig(cell="gru", hidden_size=12, **(model or {}))).eval()
    return service_of(ServedModel("clf", "c" * 64, task, network), store, **settings)


def service_of(served: ServedModel, store: Store | None, **settings) -> Service:
    return Service(served, ServeConfig(**{"slots": 16, **settings}), Metrics(model=served.name), store)


class Server:
    """The application behind a real HTTP server on a free port of 127.0.0.1."""

    def __init__(
        self,
        service: Service,
        api_key: str | None = None,
        vault: list[Shard] | tuple[()] = (),
        lineup: Lineup | None = None,
        trial: Trial | None = None,
    ) -> None:
        self.service = service
        self.lineup = lineup or Lineup(service, vault=vault, owner=fingerprint(api_key))
        app = build_asgi(self.lineup, api_key, trial=trial)
        config = uvicorn.Config(app, port=0, log_level="error", timeout_graceful_shutdown=2)
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run)
        self._thread.start()
        while not self._server.started:
            assert self._thread.is_alive()
            time.sleep(0.005)
        port = self._server.servers[0].sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self.client = httpx.Client(base_url=self.url, timeout=120)

    def post(self, path: str, **body) -> httpx.Response:
        return self.client.post(path, json=body)

    def close(self) -> None:
        self.client.close()
        self._server.should_exit = True
        self._thread.join()


@pytest.fixture(scope="module")
def serve():
    """Starts servers that end with the module."""
    started: list[Server] = []

    def start(service: Service, api_key: str | None = None, vault: list[Shard] | tuple[()] = ()) -> Server:
        started.append(Server(service, api_key, vault))
        return started[-1]

    yield start
    for server in started:
        server.close()


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return open_store(tmp_path_factory.mktemp("store").as_uri())


@pytest.fixture(scope="module")
def lm(serve, store):
    """A server of a language model with sessions."""
    return serve(
        language_service(store.child("lm"), max_steps_per_request=64, max_request_bytes=4096, max_new_tokens=40)
    )
