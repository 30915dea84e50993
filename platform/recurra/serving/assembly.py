"""All of one replica, put together: its bundles with their sessions, the application, and what it reports."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from recurra.config.env import api_key
from recurra.serving.app import build_asgi
from recurra.serving.autoscaling import LOAD, TICK_P95_MS
from recurra.serving.bundles import Bundles
from recurra.serving.direct import adopt
from recurra.serving.edge import App
from recurra.serving.lineup import Lineup
from recurra.serving.listeners import listen_widely
from recurra.serving.run import ServeRun
from recurra.serving.session_keeping import fingerprint
from recurra.serving.tick_times import TickTimes
from recurra.serving.vault_actors import VaultSettings, vault_shards
from recurra.serving.vault_log import agreed_shards
from recurra.serving.vault_shard import ShardOptions
from recurra.storage.store import Store
from recurra.telemetry.fleet import FleetReporter, fleet_exposition_async

YOUNG_OBJECTS = 20_000
"""New objects before the collector looks for cycles among them. Python's 700 are fewer than what 128 open requests hold, so
that it walked over them again and again: a twentieth of a replica's time."""


class Assembly:
    """Of the process that it is made in.

    Args:
        run: What is deployed.
        begin: When the process began with it, by `time.perf_counter`.
    """

    def __init__(self, run: ServeRun, begin: float) -> None:
        self._reporters: list[FleetReporter] = []
        bundles = Bundles(run, lambda metrics: self._reporters.append(FleetReporter(metrics, f"serve-{run.name}")))
        self._key = api_key()
        vault = vault_shards(_vault_settings(run, bundles.sessions)) if run.serve.sessions.vault is not None else []
        canary = bundles.candidate()
        self._lineup = Lineup(
            bundles.stable(),
            canary,
            run.serve.canary.share if run.serve.canary is not None else 0.0,
            load=bundles.older,
            vault=vault,
            owner=fingerprint(self._key),
        )
        self._trial = bundles.trial(self._lineup) if canary is not None else None
        self._ticks = TickTimes(self._lineup.stable.service.metrics)
        self._route_prefix = run.serve.route_prefix
        self._lineup.stable.service.metrics.gauge("recurra_model_load_seconds").set(time.perf_counter() - begin)
        gc.collect()
        gc.freeze()  # what is here now stays: the collector need not walk over torch and Ray again and again
        gc.set_threshold(YOUNG_OBJECTS)

    def app(self) -> App:
        """The application, adopted by the running event loop's HTTP server."""
        app = build_asgi(self._lineup, self._key, fleet_exposition_async, self._reporting, self._trial)
        adopt(app, self._route_prefix, self._lineup.leave)
        listen_widely(asyncio.get_running_loop())
        return app

    @property
    def healthy(self) -> bool:
        return self._lineup.healthy

    def load(self) -> dict[str, float]:
        """What `LoadPolicy` reads."""
        return {LOAD: self._lineup.mean_load(), TICK_P95_MS: self._ticks.p95_ms()}

    @asynccontextmanager
    async def _reporting(self) -> AsyncIterator[None]:
        """What was counted last reaches the fleet before the process goes."""
        try:
            yield
        finally:
            for reporter in self._reporters:
                await asyncio.to_thread(reporter.close)


def _vault_settings(run: ServeRun, store: Store) -> VaultSettings:
    """The vault of an application's model: with another model it is another vault."""
    config, vault = run.serve.sessions, run.serve.sessions.vault
    assert vault is not None
    inner = store.child("vault")
    count = agreed_shards(inner, vault.shards)
    budget = None if config.bytes_per_key is None else -(-config.bytes_per_key // count)
    options = ShardOptions(vault.flush_s, vault.memory_bytes, budget)
    name = f"{run.name}-{run.model.partition('@')[0]}"
    return VaultSettings(name, inner.url, count, options, vault.idle_s)
