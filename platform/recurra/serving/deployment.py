"""The service on Ray Serve: it wires, and decides nothing. Of this room, vault_actors.py alone imports Ray, too.

Ray imports this file once more than there are replicas, in a process that only builds the application from it, while the
deployment waits. That one does without torch, which a replica imports when it starts.
"""

from __future__ import annotations

import importlib
import sys
import time
from typing import TYPE_CHECKING, Any

from ray import serve
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy

from recurra.config.load import parse
from recurra.errors import ClusterError
from recurra.serving.edge import App
from recurra.serving.run import ServeRun

if TYPE_CHECKING:
    from recurra.serving.assembly import Assembly

DEPLOYMENT = "replica"
CONSTRUCTOR_TRIES = 3
HEALTH_PERIOD_S = 5.0
PUSH_S = 1.0
"""Between two reports of a replica's load. Ray 2.60 goes by the deprecated setting and not by the variables that are to
replace it (config/env.py), and would else hear of a load up to 10 s late."""
SWITCH_S = 0.0005
"""How long the engine's thread, back from the model, waits for the event loop to let go of the interpreter; Python's own
5 ms are as long as a forward pass of 32 sequences."""


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
        sys.setswitchinterval(SWITCH_S)
        # Not imported above: torch comes with it.
        assembly = importlib.import_module("recurra.serving.assembly")
        self._assembly: Assembly = assembly.Assembly(parse(arguments, ServeRun), begin)

    def __serve_build_asgi_app__(self) -> App:
        return self._assembly.app()

    async def check_health(self) -> None:
        """Ray restarts the replica when this raises three times in a row."""
        if not self._assembly.healthy:
            raise ClusterError("The engine's thread has ended, or one tick takes longer than any request may.")

    def record_autoscaling_stats(self) -> dict[str, float]:
        """What `LoadPolicy` reads."""
        return self._assembly.load()


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
