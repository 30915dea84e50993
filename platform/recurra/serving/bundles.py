"""Fetches the bundles of one application from the registry, and makes services of them."""

from __future__ import annotations

import time
from collections.abc import Callable
from urllib.parse import urlsplit

import torch

from recurra.registry.loading import load_model
from recurra.registry.registry import Registry
from recurra.serving.guard import CanaryGuard
from recurra.serving.lineup import Lineup
from recurra.serving.run import ServeRun
from recurra.serving.service import ServedModel, Service
from recurra.serving.trial import Trial
from recurra.storage.url import open_store
from recurra.telemetry.metrics import Metrics


class Bundles:
    """Blocking.

    Args:
        run: What is deployed.
        report: Told of the metrics of each bundle, once.
    """

    def __init__(self, run: ServeRun, report: Callable[[Metrics], None]) -> None:
        self.name = run.model.partition("@")[0]
        self.sessions = open_store(_sessions_url(run)).child(self.name)
        """Where sessions of the model are kept, whichever bundle they go on with."""
        self._run = run
        self._report = report
        self._registry = Registry(run.registry, actor=f"service {run.name}")
        self._stable = run.release.digest or self._registry.resolve(run.model)
        self._made_s = run.release.made_s or time.time()
        self._metrics: dict[str, Metrics] = {}

    def stable(self) -> Service:
        """What the reference meant when the deployment was made.

        Raises:
            RegistryError: There is no such bundle.
        """
        return self._service(self._stable, self.name)

    def candidate(self) -> Service | None:
        """What is tried out; None where there is nothing, the same bundle, or one that was taken back."""
        canary = self._run.serve.canary
        if canary is None:
            return None
        digest = self._run.release.candidate or self._registry.resolve(canary.model)
        if digest == self._stable or self._registry.was_taken_back(self.name, self._alias, digest):
            return None
        return self.older(digest)

    def older(self, digest: str) -> Service:
        """A bundle that sessions were begun with.

        Raises:
            RegistryError: There is no such bundle.
        """
        return self._service(digest, f"{self.name}@{digest[:12]}")

    def trial(self, lineup: Lineup) -> Trial:
        """Of the candidate in the lineup."""
        canary = self._run.serve.canary
        assert canary is not None and lineup.candidate is not None
        guard = None
        if canary.guard is not None:
            guard = CanaryGuard(canary.guard, lineup.candidate.digest, lineup.stable.digest)
        return Trial(lineup, self._registry, self._alias, guard)

    @property
    def _alias(self) -> str:
        assert self._run.serve.canary is not None
        return self._run.serve.canary.model.partition("@")[2]

    def _service(self, digest: str, label: str) -> Service:
        loaded = load_model(self._registry, f"{self.name}@{digest}")
        if self._run.serve.gpus_per_replica > 0:
            loaded.model.to(torch.device("cuda"))
        if digest not in self._metrics:
            self._metrics[digest] = Metrics(model=label)
            self._report(self._metrics[digest])
        bundle = loaded.bundle
        served = ServedModel(
            self.name,
            bundle.digest,
            loaded.task,
            loaded.model,
            bundle.created,
            bundle.metrics,
            bundle.card,
            self._made_s,
        )
        return Service(served, self._run.serve, self._metrics[digest], self.sessions)


def _sessions_url(run: ServeRun) -> str:
    if run.serve.sessions.url is not None:
        return run.serve.sessions.url
    parts = urlsplit(run.registry)
    beside = parts.path.rstrip("/").rpartition("/")[0] if parts.scheme == "file" or "/" in parts.path.strip("/") else ""
    return f"{parts.scheme}://{parts.netloc}{beside}/sessions"
