"""What a replica does when it gets ten times what saturates it: answered, refused, health, memory.

The classifier of bench_serve.py, limits as they are by default. Twice over: ten times the clients, of which a refused one rests
for the second that Retry-After says and up to another one, as our client does; and requests at `--times` the rate of the peak,
that come whatever became of those before (client and server share the cores, so there the refusals themselves are a load: what
was sent is reported). The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import threading
import time
import urllib.request
from pathlib import Path
from typing import Self

import serve_client
from bench_serve import make_model, recurra_server

PEAK, OVER = 128, 1280
EARLY_S = 2.0
"""The burst of 1,280 clients that come in the same moment, and its end. What is said `_from_start` counts it in."""
LOOK_S = 0.25


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=8.0, help="of each measurement")
    parser.add_argument("--times", type=float, default=10.0, help="rate of the open loop, in peaks")
    options = parser.parse_args()
    os.environ.setdefault("RAY_worker_niceness", "0")
    rounds: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory(prefix="recurra-bench-") as folder:
        model, task = make_model()
        with recurra_server(Path(folder), model, task) as (port, requests):
            serve_client.run("127.0.0.1", port, requests, 32, 2.0)
            before_mb = replica_mb()
            for number in range(options.rounds):
                peak = serve_client.run("127.0.0.1", port, requests, PEAK, options.seconds)
                with Health(port) as health:
                    over = serve_client.run(
                        "127.0.0.1", port, requests, OVER, options.seconds, refused_pause_s=1.0, early_s=EARLY_S
                    )
                assert over.early is not None
                with Health(port) as health_open:
                    wanted_rps = options.times * peak.rate
                    flood = serve_client.run_open("127.0.0.1", port, requests, OVER, options.seconds, wanted_rps)
                rounds.append(
                    {
                        "peak_rps": peak.rate,
                        "goodput": over.rate / peak.rate,
                        "refused_rps": len(over.refusals_s) / over.seconds,
                        "refusal_p99_ms": serve_client.percentile_ms(over.refusals_s, 99),
                        "goodput_from_start": over.rate_from_start / peak.rate,
                        "refusal_p99_ms_from_start": serve_client.percentile_ms(
                            over.early.refusals_s + over.refusals_s, 99
                        ),
                        "answer_p99_ms": over.percentile_ms(99),
                        "other_failures": sum(over.failures.values()) - len(over.refusals_s),
                        "health_slowest_ms": 1e3 * max(health.seconds),
                        "unhealthy": health.failures + health_open.failures,
                        "open_offered": flood.sent / flood.seconds / peak.rate,
                        "open_goodput": flood.rate / peak.rate,
                        "open_refused_rps": len(flood.refusals_s) / flood.seconds,
                        "open_refusal_p99_ms": serve_client.percentile_ms(flood.refusals_s, 99),
                        "open_health_slowest_ms": 1e3 * max(health_open.seconds),
                    }
                )
                print(f"round {number + 1}: " + ", ".join(f"{k} {v:.2f}" for k, v in rounds[-1].items()), flush=True)
            growth_mb = replica_mb() - before_mb
    middle = {name: round(statistics.median(one[name] for one in rounds), 3) for name in rounds[0]}
    print(json.dumps({"bench": "overload", **middle, "memory_growth_mb": round(growth_mb)}))


def replica_mb() -> float:
    """Resident memory of the replica's process."""
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and b"ServeReplica:clf" in (entry / "cmdline").read_bytes():
                status = (entry / "status").read_text()
                return int(status.split("VmRSS:")[1].split()[0]) / 1024
        except OSError:
            continue
    raise RuntimeError("There is no replica of 'clf' on this machine.")


class Health:
    """Asks for the replica's health all the while, from a thread."""

    def __init__(self, port: int) -> None:
        self._url = f"http://127.0.0.1:{port}/health/ready"
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._ask, daemon=True)
        self.seconds: list[float] = [0.0]
        self.failures = 0

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._ending.set()
        self._thread.join()

    def _ask(self) -> None:
        while not self._ending.wait(LOOK_S):
            begin = time.perf_counter()
            try:
                urllib.request.urlopen(self._url, timeout=10).read()
            except OSError:
                self.failures += 1
            self.seconds.append(time.perf_counter() - begin)


if __name__ == "__main__":
    main()
