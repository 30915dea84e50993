"""The fleet's metrics on Ray: one named detached actor that every replica and every training worker reports to.

The actor runs on the head node, so that one scrape target stays right while nodes come and go. When its process
dies Ray starts it again, and every live process is back in it within a second; only the last values of processes
that had ended before are gone, which Prometheus takes as a counter reset.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import threading
from collections.abc import Callable
from concurrent.futures import TimeoutError as FutureTimeoutError
from types import TracebackType
from typing import Any, Self

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from recurra.config.env import metrics_address
from recurra.errors import ClusterError
from recurra.telemetry.collector import REFUSED, CollectorOptions, FleetCollector
from recurra.telemetry.metrics import Metrics

ACTOR_NAME = "recurra-metrics"
NAMESPACE = "recurra"
MAX_SOURCES = 10_000
"""Each source keeps one call to the actor open."""
SOME_MEMORY = 1.0
"""Bytes; Ray puts an actor that asks for nothing at all on a node at random, whatever (soft) affinity it has."""


_handle: tuple[str, Any] | None = None
"""Job that this process belongs to, and its handle of the collector: finding it asks the cluster, which takes time."""


def fleet_actor(address: str | None = None) -> Any:
    """Handle of the collector, which is started if it does not run yet.

    Args:
        address: `host:port` of its HTTP exporter when this call starts it; by default `RECURRA_METRICS_ADDRESS`.

    Raises:
        ClusterError: This process is not connected to a Ray cluster.
    """
    global _handle
    if not ray.is_initialized():
        raise ClusterError("The fleet's metrics need a Ray cluster. Call ray.init(address=...) before.")
    job = ray.get_runtime_context().get_job_id()
    if _handle is None or _handle[0] != job:
        actor = ray.remote(FleetCollector).options(
            name=ACTOR_NAME,
            namespace=NAMESPACE,
            lifetime="detached",
            get_if_exists=True,
            num_cpus=0,
            memory=SOME_MEMORY,
            max_restarts=-1,
            max_concurrency=MAX_SOURCES,
            scheduling_strategy=NodeAffinitySchedulingStrategy(_head_node_id(), soft=True),
        )
        _handle = job, actor.remote(address or metrics_address(), CollectorOptions())
    return _handle[1]


def fleet_exposition(timeout_s: float = 10.0) -> str:
    """Prometheus' text format of the whole fleet. Not for an event loop: see `fleet_exposition_async`.

    Raises:
        ClusterError: The collector does not answer, also not after it was looked for again.
    """
    try:
        return _collect(timeout_s)
    except (RayError, FutureTimeoutError):
        _forget()
    try:
        return _collect(timeout_s)
    except (RayError, FutureTimeoutError) as exc:
        raise ClusterError(f"The metrics collector does not answer ({type(exc).__name__}). Try again.") from exc


async def fleet_exposition_async(timeout_s: float = 10.0) -> str:
    """As `fleet_exposition`, on a thread of its own."""
    return await asyncio.to_thread(fleet_exposition, timeout_s)


def _collect(timeout_s: float) -> str:
    return str(fleet_actor().collect.remote().future().result(timeout_s))


def _forget() -> None:
    global _handle
    _handle = None


class FleetReporter:
    """Reports one process's metrics to the fleet from a thread of its own, until it is closed.

    Args:
        metrics: What this process counts.
        role: Start of the source's name, such as `serve` or `train-rank0`; the rest makes it unique.
        connect: Gives the collector's handle; asked again whenever the collector was lost.
    """

    def __init__(self, metrics: Metrics, role: str, connect: Callable[[], Any] = fleet_actor) -> None:
        self.source = f"{role}-{os.getpid()}-{secrets.token_hex(3)}"
        self._metrics = metrics
        self._connect = connect
        self._sequence = 0
        self._sequencing = threading.Lock()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._report, name=f"metrics of {self.source}", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self, timeout_s: float = 5.0) -> bool:
        """Push the last values as final ones and stop. Returns whether the collector confirmed them."""
        if self._closing.is_set():
            return True
        self._closing.set()
        try:
            self._push(self._connect(), seen_round=0, final=True, timeout_s=timeout_s)
        except (RayError, ClusterError, FutureTimeoutError):
            return False
        finally:
            self._thread.join(timeout_s)
        return True

    def _report(self) -> None:
        actor, seen_round, failures = None, 0, 0
        while not self._closing.is_set():
            try:
                actor = actor or self._connect()
                seen_round = self._push(actor, seen_round, final=False, timeout_s=30.0)
                failures = 0
            except (RayError, ClusterError, FutureTimeoutError):
                # The collector is being restarted, or the cluster goes down: never a reason to stop the work.
                _forget()
                actor, seen_round, failures = None, 0, failures + 1
                self._closing.wait(min(5.0, 0.1 * 2.0 ** min(failures, 6)))
            if seen_round == REFUSED:
                return

    def _push(self, actor: Any, seen_round: int, final: bool, timeout_s: float) -> int:
        with self._sequencing:
            self._sequence += 1
            reference = actor.push.remote(self.source, self._metrics.snapshot(), self._sequence, seen_round, final)
        return int(reference.future().result(timeout_s))


def _head_node_id() -> str:
    for node in ray.nodes():
        if node["Alive"] and "node:__internal_head__" in node["Resources"]:
            return str(node["NodeID"])
    return str(ray.get_runtime_context().get_node_id())
