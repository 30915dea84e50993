"""Load that comes and goes in steps, and the replicas that follow it: how soon, how often, and what a client notices.

Clients ask for completions one after the other, so their number over the slots of a replica is the load that one replica
would have: 2 clients, then 24, then 2, then none, then 2. The preset is used as it is, but for `idle_s`, which is short here
so that the service goes to zero within the run; sessions that were begun at its start must all be there at its end. Draws
tests/benchmarks/plots/autoscale-PRESET.svg. The last line is JSON.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import httpx

from recurra.config.env import apply_ray_environment

apply_ray_environment()

from autoscale_plot import Sample, draw
from deployed import deployed

from recurra.orchestration.deploy import ServeApi
from recurra.orchestration.local_cluster import LocalCluster
from recurra.serving.client import Client
from recurra.serving.config import ServeConfig
from recurra.serving.scaling import PRESETS

APPLICATION = "scaled"
HIDDEN_SIZE = 256
SLOTS = 12
MOST = 3
LOW, HIGH = 2, 24
IDLE_S = 20.0
TOKENS = 400
SESSIONS = 50
SAMPLE_S = 1.0


@dataclass
class Answered:
    """One request: when it was sent and after how many seconds it was answered; by the clock of the run."""

    at_s: float
    seconds: float
    failed: bool


class Load:
    """Clients that ask one request after the other; as many at a time as `wanted` says."""

    def __init__(self, url: str, begin_s: float) -> None:
        self.answered: list[Answered] = []
        self.wanted = 0
        self._url = url
        self._begin_s = begin_s
        self._over = False
        self._threads = [threading.Thread(target=self._ask, args=(number,)) for number in range(HIGH)]
        for thread in self._threads:
            thread.start()

    def end(self) -> None:
        self._over = True
        for thread in self._threads:
            thread.join()

    def _ask(self, number: int) -> None:
        body = {"model": "lm", "prompt": "import ", "max_tokens": TOKENS, "seed": number}
        with httpx.Client(base_url=self._url, timeout=120) as http:
            while not self._over:
                if number >= self.wanted:
                    time.sleep(0.05)
                    continue
                sent = time.monotonic()
                try:
                    failed = not http.post("/v1/completions", json=body).is_success
                except httpx.HTTPError:
                    failed = True
                now = time.monotonic()
                self.answered.append(Answered(now - self._begin_s, now - sent, failed))


class Watch:
    """Looks at the replicas once in `SAMPLE_S`."""

    def __init__(self, api: ServeApi, load: Load, begin_s: float) -> None:
        self.samples: list[Sample] = []
        self._api, self._load, self._begin_s = api, load, begin_s
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look)
        self._thread.start()

    def end(self) -> None:
        self._over.set()
        self._thread.join()

    def wait_for(self, running: int, timeout_s: float) -> None:
        """Until so many replicas run."""
        until_s = time.monotonic() + timeout_s
        while not self.samples or self.samples[-1].running != running:
            if time.monotonic() > until_s:
                raise TimeoutError(f"There were not {running} replicas after {timeout_s:.0f} s.")
            time.sleep(0.2)

    def _look(self) -> None:
        while not self._over.wait(SAMPLE_S):
            (status,) = self._api.statuses()
            now_s = time.monotonic() - self._begin_s
            running = status.replicas.get("RUNNING", 0)
            starting = sum(status.replicas.get(kind, 0) for kind in ("STARTING", "UPDATING", "RECOVERING"))
            recent = [a.seconds for a in self._load.answered[-200:] if a.at_s > now_s - 2 * SAMPLE_S]
            latency_s = statistics.median(recent) if recent else None
            self.samples.append(Sample(now_s, self._load.wanted, running + starting, running, latency_s))


def serve_config(preset: str) -> ServeConfig:
    scaling = PRESETS[preset].model_copy(update={"idle_s": IDLE_S})
    return ServeConfig(replicas=(0, MOST), slots=SLOTS, cpus_per_replica=0.5, threads=1, autoscaling=scaling)


def record(cluster: LocalCluster, preset: str, high_s: float) -> dict:
    """The run itself."""
    url = cluster.serve_url
    scaling = PRESETS[preset]
    with Client(url, timeout_s=120) as client:
        sessions = [client.session({"text": f"{number} "}) for number in range(SESSIONS)]
    begin_s = time.monotonic()
    load = Load(url, begin_s)
    watch = Watch(ServeApi(cluster.dashboard_url), load, begin_s)
    marks: dict[str, float] = {}

    def step(name: str, clients: int) -> None:
        marks[name] = time.monotonic() - begin_s
        load.wanted = clients
        print(f"{marks[name]:.0f} s: {clients} clients", flush=True)

    try:
        step("low", LOW)
        watch.wait_for(1, 120)
        time.sleep(20)
        step("high", HIGH)
        watch.wait_for(MOST, 180)
        time.sleep(high_s)
        step("low again", LOW)
        watch.wait_for(1, scaling.downscale_delay_s + 120)
        time.sleep(10)
        step("none", 0)
        watch.wait_for(0, IDLE_S + 120)
        step("after zero", LOW)
        watch.wait_for(1, 180)
        with Client(url, timeout_s=120) as client:
            again = [client.session(id=session.id) for session in sessions]
            kept = sum(
                one.step({"text": "x"})["step"] == old.number + 1 for one, old in zip(again, sessions, strict=True)
            )
        time.sleep(15)
    finally:
        load.end()
        watch.end()
    draw_to = Path(__file__).parent / "plots" / f"autoscale-{preset}.svg"
    draw_to.write_text(draw(f"Replicas follow load ({preset}, {SLOTS} slots)", watch.samples, marks), encoding="utf-8")
    return summary(preset, watch.samples, load.answered, marks) | {"sessions": SESSIONS, "lost": SESSIONS - kept}


def summary(preset: str, samples: list[Sample], answered: list[Answered], marks: dict[str, float]) -> dict:
    def first(after: str, count: int, what: str) -> float:
        at_s = next(s.at_s for s in samples if s.at_s > marks[after] and getattr(s, what) == count)
        return round(at_s - marks[after], 1)

    def median_ms(low_s: float, high_s: float) -> float:
        times = [a.seconds for a in answered if low_s < a.at_s <= high_s]
        return round(1e3 * statistics.median(times), 1)

    wanted = [s.wanted for s in samples if s.at_s > marks["low"]]
    changes = sum(one != two for one, two in itertools.pairwise(wanted))
    scaled_s = marks["high"] + first("high", MOST, "running")
    print(
        f"p50 of a request of {TOKENS} tokens: {median_ms(marks['low'], marks['high'])} ms with {LOW} clients, "
        f"{median_ms(marks['high'], scaled_s)} ms with {HIGH} until all replicas ran, "
        f"{median_ms(scaled_s, marks['low again'])} ms after it; {len(answered)} requests"
    )
    return {
        "bench": "autoscale",
        "preset": preset,
        "replicas": MOST,
        "wanted_after_s": first("high", MOST, "wanted"),
        "running_after_s": first("high", MOST, "running"),
        "from_zero_s": first("after zero", 1, "running"),
        "changes": changes,
        "failed": sum(a.failed for a in answered),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", choices=sorted(PRESETS), default="responsive")
    parser.add_argument("--high-seconds", type=float, default=40.0, help="of high load once all replicas run")
    arguments = parser.parse_args()
    with deployed(APPLICATION, serve_config(arguments.preset), HIDDEN_SIZE) as cluster:
        result = record(cluster, arguments.preset, arguments.high_seconds)
    print(json.dumps(result))
    return 0 if result["failed"] == result["lost"] == 0 else 1


if __name__ == "__main__":
    sys.exit(main())
