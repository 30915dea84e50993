"""Recurra and its peers behind HTTP: a classifier, the same with lengths that vary, streams of generated text, sessions.

The same weights, the same client, one server at a time, turn by turn, medians. Recurra runs as it is deployed: Ray Serve,
HAProxy, registry, key check, metrics, vault. The peers have batching on and virtual environments of their own; that of Ray
Serve has Recurra's own flags. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import serve_loads
from serve_loads import CLIENTS, LOADS, Figures
from serve_servers import OWN, PEER_LIST, make_language, make_model, own_server, peer_server, write_weights

from recurra.models.sequence import SequenceModel
from recurra.tasks.base import Task

PROCESSES = 2
"""Replicas of Recurra; peers' programs have as many workers or replicas. One for each core of the machine of the results."""
JUDGED = 32
"""Clients of the run of the classifier whose rates are compared."""
Start = Callable[[], AbstractContextManager[int]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each measurement")
    parser.add_argument("--only", default=",".join(LOADS), help=f"loads: some of {','.join(LOADS)}")
    parser.add_argument("--servers", default="", help="some of recurra and the peers' names, with commas between")
    parser.add_argument("--venvs", type=Path, default=Path(tempfile.gettempdir()) / "recurra-bench-venvs")
    options = parser.parse_args()
    os.environ.setdefault("RAY_worker_niceness", "0")  # as the peers have it: Ray's own default is 15
    loads = options.only.split(",")
    with tempfile.TemporaryDirectory(prefix="recurra-bench-") as folder:
        servers = starts(Path(folder), options.venvs, options.servers.split(",") if options.servers else None)
        ceiling = serve_loads.ceiling_rate(make_model()[0])
        print(f"the classifier alone, batch 32, one thread: {ceiling:.0f} sequences/s", flush=True)
        rounds = [measure(servers, loads, options.seconds, number) for number in range(options.rounds)]
    print_summary(rounds, ceiling)


@contextmanager
def recurra_server(work: Path, model: SequenceModel, task: Task) -> Iterator[tuple[int, list[bytes]]]:
    """Port and requests of the deployed classifier, for bench_overload.py."""
    with own_server(work, model, task) as port:
        yield port, serve_loads.predictions(OWN, False, port, serve_loads.classified())


def starts(work: Path, venvs: Path, names: list[str] | None) -> dict[tuple[str, str], Start]:
    """By server and model: how to start it."""
    weights = work / "weights"
    write_weights(weights)
    found: dict[tuple[str, str], Start] = {
        (OWN, "classifier"): lambda: own_server(work, *make_model(), replicas=PROCESSES),
        (OWN, "language"): lambda: own_server(work, *make_language(), "lm", replicas=PROCESSES),
    }
    for peer in PEER_LIST:
        for model in peer.commands:
            found[peer.name, model] = lambda peer=peer, model=model: peer_server(peer, model, weights, venvs)
    return {key: start for key, start in found.items() if names is None or key[0] in names}


def measure(servers: dict[tuple[str, str], Start], loads: list[str], seconds: float, number: int) -> dict[str, Figures]:
    """One round: for each server what the loads found."""
    found: dict[str, Figures] = {}
    wrapping = {peer.name for peer in PEER_LIST if peer.wraps}
    for model in ("classifier", "language"):
        chosen = [LOADS[name][1] for name in LOADS if name in loads and LOADS[name][0] == model]
        for (name, served), start in servers.items():
            if served != model or not (use := [load for load in chosen if suits(name, load)]):
                continue
            with start() as port:
                for load in use:
                    figures = load(name, name in wrapping, port, seconds)
                    found.setdefault(name, {}).update(figures)
                    said = ", ".join(f"{key} {value:.1f}" for key, value in figures.items())
                    print(f"round {number + 1}: {name}: {said}", flush=True)
    return found


def suits(server: str, load: object) -> bool:
    """Of a peer's workers each would know a part of the sessions' steps."""
    return load is not serve_loads.sessions or server in (OWN, "fastapi")


def print_summary(rounds: list[dict[str, Figures]], ceiling: float) -> None:
    middle = {
        name: {key: statistics.median(one[name][key] for one in rounds) for key in rounds[0][name]}
        for name in rounds[0]
    }
    keys = list(dict.fromkeys(key for figures in middle.values() for key in figures))
    print("\n| | " + " | ".join(middle) + " |\n|---" * 1 + "|---" * len(middle) + "|")
    for key in keys:
        cells = [f"{figures[key]:.2f}" if key in figures else "" for figures in middle.values()]
        print(f"| {key} | " + " | ".join(cells) + " |")
    result: dict[str, object] = {"bench": "serve", "rounds": len(rounds), "ceiling_rps": round(ceiling)}
    result |= ratios(middle, ceiling) if OWN in middle else {}
    print(json.dumps(result))


def ratios(middle: dict[str, Figures], ceiling: float) -> dict[str, object]:
    """Ours / the best peer's."""
    own = middle[OWN]
    found: dict[str, object] = {}
    names = {"classify_rps": f"classify_{JUDGED}_rps", "mixed_rps": "mixed_rps", "generate_tok": "generate_tok"}
    for name, key in {**names, "sessions_rps": "sessions_rps"}.items():
        peers = {peer: figures[key] for peer, figures in middle.items() if peer != OWN and key in figures}
        if key in own and peers:
            best = max(peers, key=lambda peer: peers[peer])
            found[f"{name}_ratio"] = round(own[key] / peers[best], 2)
            found[f"{name}_best_peer"] = best
    most = f"classify_{CLIENTS[-1]}_rps"
    if most in own:
        found["ceiling_share"] = round(own[most] / ceiling, 2)
        if "fastapi" in middle:
            key = "classify_1_p50_ms"
            found["p50_1client_over_fastapi"] = round(own[key] / middle["fastapi"][key], 2)
    if "generate_tok" in own:
        found["ttft_p99_ratio"] = round(own["ttft_p99_ms"] / own["ttft_idle_p99_ms"], 2)
        if "ray_batch" in middle:
            found["generate_over_ray_batch"] = round(own["generate_tok"] / middle["ray_batch"]["generate_tok"], 2)
    return found


if __name__ == "__main__":
    main()
