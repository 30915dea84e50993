"""Ends processes of a deployed application with SIGKILL, one whenever all of them are there."""

from __future__ import annotations

import os
import random
import signal
import time
from typing import Any

import ray
from ray.exceptions import RayActorError
from ray.util import state

from recurra.orchestration.deploy import ServeApi
from recurra.serving.vault_actors import NAMESPACE, VaultSettings
from recurra.serving.vault_shard import ShardOptions

PAUSE_S = 2.0
"""Between all being back and the next kill."""
BACK_S = 120.0
"""A replica that is not back by then ends the run: its machine has no room for it."""


class Fleet:
    """The processes of a deployed application, of the model `lm`."""

    def __init__(self, application: str, vault_url: str, replicas: int, shards: int, dashboard_url: str) -> None:
        self._application = application
        self._vault = VaultSettings(f"{application}-lm", vault_url, shards, ShardOptions(), 1.0)
        self._replicas = replicas
        self._shards = shards
        self._dashboard_url = dashboard_url
        self._api = ServeApi(dashboard_url)

    def replica_pids(self) -> list[int]:
        filters = [("state", "=", "ALIVE"), ("class_name", "=", f"ServeReplica:{self._application}:replica")]
        return [actor.pid for actor in state.list_actors(self._dashboard_url, filters=filters)]

    def shard_pids(self) -> list[int]:
        """Waits for those that are being started again."""
        return [int(pid) for pid in self._ask_shards("pid")]

    def wait_for_all(self, victim: int) -> float:
        """Until every replica answers and what every shard acknowledged is in two places; seconds that it took.

        Args:
            victim: The process that was killed, which the cluster may still take for alive.
        """
        begin = time.monotonic()
        while len(set(self.replica_pids()) - {victim}) < self._replicas or self._running() < self._replicas:
            if time.monotonic() - begin > BACK_S:
                raise TimeoutError(f"Not all replicas were back after {BACK_S:.0f} s.")
            time.sleep(0.5)
        self._ask_shards("settled")
        return time.monotonic() - begin

    def _ask_shards(self, method: str) -> list[Any]:
        return [self._ask(self._vault.actor_name(index), method) for index in range(self._shards)]

    def _ask(self, name: str, method: str) -> Any:
        until_s = time.monotonic() + BACK_S
        while True:
            try:
                return ray.get(getattr(ray.get_actor(name, NAMESPACE), method).remote(), timeout=BACK_S)
            except RayActorError:
                if time.monotonic() > until_s:
                    raise
                time.sleep(0.1)

    def _running(self) -> int:
        (status,) = self._api.statuses()
        return status.replicas.get("RUNNING", 0)


def kill_all(fleet: Fleet, replicas: int, shards: int) -> list[float]:
    """Kill random replicas and shards, one whenever all are back. Returns after how many seconds they were."""
    dice = random.Random(7)
    order = ["replica"] * replicas + ["shard"] * shards
    dice.shuffle(order)
    back_s: list[float] = []
    for kind in order:
        time.sleep(PAUSE_S)
        victim = dice.choice(fleet.shard_pids() if kind == "shard" else fleet.replica_pids())
        os.kill(victim, signal.SIGKILL)
        back_s.append(fleet.wait_for_all(victim))
        done = f"{len(back_s)} of {len(order)}"
        print(f"{time.strftime('%H:%M:%S')} killed a {kind}, {done}; back after {back_s[-1]:.1f} s", flush=True)
    return back_s
