"""Replicas of deployments of one model, which share their sessions: what tests of replayed sessions are made of."""

from __future__ import annotations

from typing import Any

import torch
from safetensors.torch import load
from tests.unit.serving.conftest import Server, service_of
from tests.unit.serving.vault_ring import VaultThread

from recurra.data.vocabulary import ByteVocabulary, Vocabulary
from recurra.errors import RegistryError
from recurra.models.config import ModelConfig
from recurra.serving.lineup import Lineup
from recurra.serving.service import ServedModel, Service
from recurra.storage.store import Store
from recurra.tasks.base import Task
from recurra.tasks.language_model import LanguageModelConfig, LanguageModelTask

OLD, NEW, OTHER = ("a" * 64, "b" * 64, "c" * 64)
SIZES = {OLD: 12, NEW: 16, OTHER: 16}
"""Another size is another layout of the state."""
BYTES = ByteVocabulary()
GREEDY = {"max_tokens": 4, "temperature": 0}


def language_task(vocabulary: Vocabulary = BYTES) -> LanguageModelTask:
    return LanguageModelTask(LanguageModelConfig(), vocabulary)


class Fleet:
    """Starts replicas.

    Args:
        vault: Whether sessions are kept in a vault; else the store alone keeps them.
        tasks: Of bundles that are not language models of bytes.
    """

    def __init__(
        self,
        store: Store,
        *,
        vault: bool,
        cell: str = "lstm",
        tasks: dict[str, Task] | None = None,
        deterministic: bool = True,
    ) -> None:
        self.store = store
        self.vault = VaultThread(store.child("vault")) if vault else None
        self._cell = cell
        self._deterministic = deterministic
        self._tasks = tasks or {}
        self._servers: list[Server] = []

    def service(self, digest: str, *, released_s: float = 1.0, policy: str = "replay", **sessions: Any) -> Service:
        """One bundle, with weights of its own."""
        task = self._tasks.get(digest) or language_task()
        torch.manual_seed(int(digest[:1], 16))
        ntm = {"ntm": {"memory_rows": 8, "memory_width": 4}} if self._cell == "ntm" else {}
        model = task.build_model(ModelConfig(cell=self._cell, hidden_size=SIZES[digest], **ntm)).eval()
        served = ServedModel("lm", digest, task, model, released_s=released_s)
        settings = {"trust_s": 0.2, "on_update": policy, **sessions}
        return service_of(served, self.store, deterministic=self._deterministic, sessions=settings)

    def replica(
        self, digest: str, *, candidate: str | None = None, known: tuple[str, ...] = (OLD, NEW, OTHER), **settings: Any
    ) -> Server:
        def fetched(wanted: str) -> Service:
            if wanted not in known:
                raise RegistryError(f"There is no bundle {wanted[:12]} of lm.")
            return self.service(wanted, **settings)

        stable = self.service(digest, **settings)
        beside = self.service(candidate, **settings) if candidate else None
        shards = self.vault.shards if self.vault else ()
        lineup = Lineup(stable, beside, 1.0 if candidate else 0.0, load=fetched, vault=shards)
        self._servers.append(Server(stable, lineup=lineup))
        return self._servers[-1]

    def close(self) -> None:
        for server in self._servers:
            server.close()
        if self.vault is not None:
            self.vault.close()


def new(server: Server, **body: Any) -> str:
    response = server.post("/v1/sessions", **body)
    assert response.status_code == 201, response.text
    return str(response.json()["id"])


def step(server: Server, id: str, **body: Any) -> dict[str, Any]:
    response = server.post(f"/v1/sessions/{id}/step", **body)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def state(server: Server, id: str) -> dict[str, torch.Tensor]:
    """The tensors of `GET …/state`."""
    tensors: dict[str, torch.Tensor] = load(server.client.get(f"/v1/sessions/{id}/state").content)
    return tensors
