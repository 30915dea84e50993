"""A thousand live sessions while replicas and vault shards are killed: what is lost, doubled or different, and how long a
step waits at worst.

Three replicas behind HAProxy, as they are deployed. Every session reads a text in small parts and generates a few tokens
after each; what it must say is computed before in this process, undisturbed. Something is killed whenever all are back
from the kill before, and the load goes on until the last of them is. The last line is JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from recurra.config.env import apply_ray_environment

apply_ray_environment()

import ray
from deployed import VAULT, deployed, make_model
from kills import Fleet, kill_all

from recurra.orchestration.local_cluster import LocalCluster
from recurra.serving.app import build_asgi
from recurra.serving.config import ServeConfig
from recurra.serving.lineup import Lineup
from recurra.serving.service import ServedModel, Service
from recurra.storage.url import open_store
from recurra.telemetry.metrics import Metrics

APPLICATION = "soak"
HIDDEN_SIZE = 128
REPLICAS = 3
SHARDS = 2
SCRIPTS = 40
"""Different texts; sessions share them."""
PART = 6
"""Characters that a step reads."""
GENERATE = {"max_tokens": 4, "temperature": 0}
PATIENCE_S = 45.0
SAY_S = 15.0
CLIENTS = 4
"""Connections pools; more would only cost the machine."""


@dataclass
class Outcome:
    """What the clients saw."""

    steps: int = 0
    gaps_s: list[float] = field(default_factory=list)
    """From the first sending of a step to its answer."""
    lost: int = 0
    doubled: int = 0
    different: int = 0
    retries: dict[str, int] = field(default_factory=dict)


def serve_config(cpus: float) -> ServeConfig:
    return ServeConfig(
        replicas=REPLICAS,
        slots=256,
        cpus_per_replica=cpus,
        deterministic=True,
        sessions={"vault": {"shards": SHARDS}},
    )


def parts_of(script: int, count: int) -> list[str]:
    """The text of a script, cut."""
    dice = random.Random(script)
    letters = "abcdefghijklmnopqrstuvwxyz ():\n"
    return ["".join(dice.choice(letters) for _ in range(PART)) for _ in range(count)]


async def undisturbed(count: int, directory: Path) -> list[list[list[int]]]:
    """What each script's session says step by step when nothing happens: one engine in this process, no vault."""
    task, model = make_model(HIDDEN_SIZE)
    service = Service(
        ServedModel("lm", "d" * 64, task, model),
        serve_config(1),
        Metrics(model="lm"),
        open_store(directory.as_uri()),
    )
    service.start(asyncio.get_running_loop())
    app = build_asgi(Lineup(service))

    async def script(http: httpx.AsyncClient, number: int) -> list[list[int]]:
        id = (await http.post("/v1/sessions")).json()["id"]
        said = []
        for part in parts_of(number, count):
            answer = await http.post(f"/v1/sessions/{id}/step", json={"input": {"text": part}, "generate": GENERATE})
            said.append(answer.raise_for_status().json()["generated"]["tokens"])
        return said

    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://here", timeout=60) as http:
        said = list(await asyncio.gather(*(script(http, number) for number in range(SCRIPTS))))
    service.stop()
    return said


class Sessions:
    """All live sessions, each stepping once in `period_s`, until it is over or they have said everything."""

    def __init__(self, url: str, said: list[list[list[int]]], count: int, period_s: float) -> None:
        self.outcome = Outcome()
        self.finished = 0
        self.over = False
        self._said = said
        self._count = count
        self._period_s = period_s
        limits = httpx.Limits(max_connections=64, max_keepalive_connections=64)
        self._pools = [httpx.AsyncClient(base_url=url, timeout=30, limits=limits) for _ in range(CLIENTS)]

    async def run(self) -> None:
        await asyncio.gather(*(self._session(number) for number in range(self._count)))
        for pool in self._pools:
            await pool.aclose()

    async def say_progress(self) -> None:
        """A line every now and then: whether the load keeps up with its own plan."""
        before = 0
        while True:
            await asyncio.sleep(SAY_S)
            steps = self.outcome.steps
            print(f"{(steps - before) / SAY_S:.0f} steps/s, {self.finished} sessions are done", flush=True)
            before = steps

    async def _session(self, number: int) -> None:
        http = self._pools[number % CLIENTS]
        said = self._said[number % SCRIPTS]
        await asyncio.sleep(self._period_s * number / self._count)
        begin = time.monotonic()
        id = (await self._insist(http, "/v1/sessions", {}))["id"]
        step = 0
        for turn, part in enumerate(parts_of(number % SCRIPTS, len(said))):
            await asyncio.sleep(max(0.0, begin + turn * self._period_s - time.monotonic()))
            if self.over:
                break
            ask = {"step": step, "input": {"text": part}, "generate": GENERATE}
            sent = time.monotonic()
            answer = await self._insist(http, f"/v1/sessions/{id}/step", ask)
            self.outcome.gaps_s.append(time.monotonic() - sent)
            self.outcome.steps += 1
            if answer is None:
                self.outcome.lost += 1
                return
            wanted = step + PART + (turn == 0) + len(said[turn])
            self.outcome.doubled += answer["step"] > wanted
            self.outcome.different += answer["generated"]["tokens"] != said[turn]
            step = answer["step"]
        final = await self._insist(http, f"/v1/sessions/{id}", None)
        self.outcome.lost += final is None or final["step"] < step
        self.outcome.doubled += final is not None and final["step"] > step
        self.finished += 1

    async def _insist(self, http: httpx.AsyncClient, path: str, body: dict | None) -> dict | None:
        """The answer, asked for again while there is none; None when the session is not there."""
        pause_s = 0.02
        while True:
            try:
                response = await (http.get(path) if body is None else http.post(path, json=body))
            except httpx.TransportError as exc:
                reason = type(exc).__name__
            else:
                if response.status_code in (200, 201):
                    return response.json()
                if response.status_code in (404, 409, 410):
                    print(f"{path}: {response.status_code} {response.text[:200]}", flush=True)
                    return None
                reason = str(response.status_code)
            self.outcome.retries[reason] = self.outcome.retries.get(reason, 0) + 1
            await asyncio.sleep(pause_s)
            pause_s = min(0.5, pause_s * 2)


async def soak(arguments: argparse.Namespace, cluster: LocalCluster, directory: Path) -> dict:
    count = int(arguments.most / arguments.period) + 1
    said = await undisturbed(count, directory / "undisturbed")
    sessions = Sessions(cluster.serve_url, said, arguments.sessions, arguments.period)
    running = asyncio.create_task(sessions.run())
    await asyncio.sleep(arguments.period + 2)  # all of them are live
    calm = len(sessions.outcome.gaps_s)
    saying = asyncio.create_task(sessions.say_progress())
    killing = asyncio.to_thread(
        kill_all,
        Fleet(APPLICATION, VAULT, REPLICAS, SHARDS, cluster.dashboard_url),
        arguments.replica_kills,
        arguments.shard_kills,
    )
    back_s = await killing
    under_load = not running.done()
    sessions.over = True
    await asyncio.wait({running}, timeout=arguments.period + PATIENCE_S)  # who is not done by then counts as lost
    for task in (running, saying):
        task.cancel()
    await asyncio.gather(running, saying, return_exceptions=True)
    outcome = sessions.outcome
    gaps = sorted(outcome.gaps_s)
    print(
        f"{outcome.steps} steps of {arguments.sessions} sessions ({sessions.finished} to their end), "
        f"p50 {1e3 * statistics.median(gaps):.0f} ms, before the kills {1e3 * statistics.median(outcome.gaps_s[:calm]):.0f} ms, "
        f"p99.9 {gaps[int(len(gaps) * 0.999)]:.2f} s, longest {gaps[-1]:.2f} s, sent again: {outcome.retries}; "
        f"all were back after {statistics.median(back_s):.1f} s (median), {max(back_s):.1f} s (longest)"
    )
    if not under_load:
        print(f"The sessions had said everything before the last kill: --most {arguments.most:g} is too short here.")
    return {
        "bench": "sessions",
        "lost": outcome.lost + arguments.sessions - sessions.finished,
        "doubled": outcome.doubled,
        "different": outcome.different,
        "p99_gap_s": round(gaps[int(len(gaps) * 0.99)], 3),
        "kills": len(back_s) if under_load else 0,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sessions", type=int, default=1000)
    parser.add_argument(
        "--most", type=float, default=1200, help="seconds of load that sessions have something to say for"
    )
    parser.add_argument("--period", type=float, default=20, help="seconds between two steps of one session")
    parser.add_argument("--replica-kills", type=int, default=20)
    parser.add_argument("--shard-kills", type=int, default=5)
    arguments = parser.parse_args()
    with deployed(APPLICATION, serve_config(0.5), HIDDEN_SIZE) as cluster, tempfile.TemporaryDirectory() as folder:
        ray.init(cluster.address, namespace="recurra", log_to_driver=False)
        result = asyncio.run(soak(arguments, cluster, Path(folder)))
        ray.shutdown()
    print(json.dumps(result))
    return 0 if result["lost"] == result["doubled"] == result["different"] == 0 else 1


if __name__ == "__main__":
    sys.exit(main())
