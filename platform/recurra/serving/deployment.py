"""The service on Ray Serve: it wires, and decides nothing. Of this room, vault_actors.py alone imports Ray, too.

Ray imports this file once more than there are replicas, in a process that only builds the application from it, while the
deployment waits. That one does without torch, which a replica imports when it starts.
"""

from __future__ import annotations

import asyncio
import gc
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from ray import serve
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy

from recurra.config.env import api_key
from recurra.config.load import parse
from recurra.errors import ClusterError
from recurra.serving.autoscaling import LOAD, TICK_P95_MS
from recurra.serving.direct import adopt
from recurra.serving.edge import App
from recurra.serving.listeners import listen_widely
from recurra.serving.run import ServeRun
from recurra.serving.tick_times import TickTimes
from recurra.serving.vault_actors import VaultSettings, vault_shards
from recurra.serving.vault_log import agreed_shards
from recurra.serving.vault_shard import ShardOptions
from recurra.storage.store import Store
from recurra.telemetry.fleet import FleetReporter, fleet_exposition_async

DEPLOYMENT = "replica"
CONSTRUCTOR_TRIES = 3
HEALTH_PERIOD_S = 5.0
PUSH_S = 1.0
"""Between two reports of a replica's load. Ray 2.60 goes by the deprecated setting and not by the variables that are to
replace it (config/env.py), and would else hear of a load up to 10 s late."""
SWITCH_S = 0.0005
"""How long the engine's thread, back from the model, waits for the event loop to let go of the interpreter; Python's own
5 ms are as long as a forward pass of 32 sequences."""
YOUNG_OBJECTS = 20_000
"""New objects before the collector looks for cycles among them. Python's 700 are fewer than what 128 open requests hold, so
that it walked over them again and again: a twentieth of a replica's time."""


def build_app(args: dict[str, Any]) -> serve.Application:
    """The application that `ServeRun.arguments()` describe: what a Ray Serve file's `import_path` names.

    Raises:
        ConfigError: An argument is unknown or out of range.
    """
    run = parse(args, ServeRun, source="args of the Serve application")
    return serve.deployment(Replica).options(**_options(run)).bind(run.arguments())


@serve.ingress()
class Replica:
    """One process that serves the model. Credentials and the API key come from its own environment."""

    def __init__(self, arguments: dict[str, Any]) -> None:
        begin = time.perf_counter()
        from recurra.serving.bundles import Bundles
        from recurra.serving.lineup import Lineup
        from recurra.serving.session_keeping import fingerprint

        sys.setswitchinterval(SWITCH_S)
        run = parse(arguments, ServeRun)
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

    def __serve_build_asgi_app__(self) -> App:
        from recurra.serving.app import build_asgi

        app = build_asgi(self._lineup, self._key, fleet_exposition_async, self._reporting, self._trial)
        adopt(app, self._route_prefix, self._lineup.leave)
        listen_widely(asyncio.get_running_loop())
        return app

    async def check_health(self) -> None:
        """Ray restarts the replica when this raises three times in a row."""
        if not self._lineup.healthy:
            raise ClusterError("The engine's thread has ended, or one tick takes longer than any request may.")

    def record_autoscaling_stats(self) -> dict[str, float]:
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


def _options(run: ServeRun) -> dict[str, Any]:
    config = run.serve
    options: dict[str, Any] = {
        "name": DEPLOYMENT,
        "max_ongoing_requests": config.open_requests,
        "graceful_shutdown_timeout_s": config.shutdown_s,
        "graceful_shutdown_wait_loop_s": 0.2,
        "health_check_period_s": HEALTH_PERIOD_S,
        "max_constructor_retry_count": CONSTRUCTOR_TRIES,
        "max_surge_percent": config.surge_percent,
        "ray_actor_options": {"num_cpus": config.cpus_per_replica, "num_gpus": config.gpus_per_replica},
    }
    low, high = config.replica_range
    if low == high:
        return {**options, "num_replicas": low}
    scaling = config.autoscaling
    options["autoscaling_config"] = AutoscalingConfig(
        min_replicas=low,
        max_replicas=high,
        upscale_delay_s=scaling.upscale_delay_s,
        downscale_delay_s=scaling.downscale_delay_s,
        downscale_to_zero_delay_s=scaling.idle_s,
        look_back_period_s=scaling.look_back_s,
        metrics_interval_s=min(PUSH_S, scaling.look_back_s / 2),
        policy=AutoscalingPolicy(
            policy_function="recurra.serving.autoscaling:LoadPolicy",
            policy_kwargs={"target": scaling.target_load, "tick_p95_ms": scaling.tick_p95_ms},
        ),
    )
    return options


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
