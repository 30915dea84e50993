"""An untrained byte language model, deployed under the name `lm` on a Ray cluster and an object store of its own."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import torch

from recurra.data.vocabulary import ByteVocabulary
from recurra.models.config import ModelConfig
from recurra.models.sequence import Model
from recurra.models.weights import save_weights
from recurra.orchestration.deploy import ServeApi
from recurra.orchestration.local_cluster import ClusterOptions, LocalCluster
from recurra.registry.bundle import BundleParts
from recurra.registry.registry import Registry
from recurra.serving.config import ServeConfig
from recurra.serving.run import ServeRun
from recurra.storage.server import EmbeddedServer
from recurra.tasks.language_model import LanguageModelConfig, LanguageModelTask

REGISTRY = "s3://recurra/bench/registry"
VAULT = "s3://recurra/bench/sessions/lm/vault"
"""Where it keeps its sessions by default."""


def make_model(hidden_size: int) -> tuple[LanguageModelTask, Model]:
    """The same weights each time. It never says that its text ends, so that requests have the lengths they ask for."""
    task = LanguageModelTask(LanguageModelConfig(), ByteVocabulary())
    torch.manual_seed(1)
    model = task.build_model(ModelConfig(cell="lstm", hidden_size=hidden_size)).eval()
    with torch.no_grad():
        model.head.bias[task.vocabulary.bos] = -100.0
    return task, model


@contextmanager
def deployed(application: str, serve: ServeConfig, hidden_size: int) -> Iterator[LocalCluster]:
    """The cluster, once the application answers."""
    task, model = make_model(hidden_size)
    parts = BundleParts(
        task=task.describe(),
        model=model.config.model_dump(mode="json"),
        shape=asdict(model.shape),
        state_spec=model.state_spec.to_json(),
    )
    with tempfile.TemporaryDirectory() as folder:
        server = EmbeddedServer(Path(folder) / "s3")
        server.start()
        os.environ.update(server.environment())
        server.create_bucket("recurra")
        Registry(REGISTRY).publish("lm", parts, save_weights(model), alias="production")
        options = ClusterOptions(num_cpus=4, environment=server.environment(), ends_with_us=True)
        cluster = LocalCluster(Path(folder) / "ray", options).start()
        try:
            run = ServeRun(name=application, model="lm@production", registry=REGISTRY, serve=serve)
            ServeApi(cluster.dashboard_url).deploy(
                run, http_port=cluster.record.ports.http, timeout_s=300, progress=print
            )
            yield cluster
        finally:
            cluster.stop()
            server.kill()
