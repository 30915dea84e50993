"""Real tokens a second that a reader turns into padded torch batches of 64, ours and those of four peers, from one S3 server.

Lengths are lognormal (median 60, sigma 1, 4 to 2000), tokens uint16. Every contender reads the same tokens from its own
format, in its own virtual environment, turn by turn, medians. With one reader the server stays on one core and the reader
on another. The second network answers as a distant store does. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
import venv
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import boto3
import numpy as np
import pyarrow as pa
import torch

from recurra.storage.server import EmbeddedServer

HERE = Path(__file__).parent
PEERS = HERE / "data_peers"
BUCKET = "bench"
BATCH = 64
NUMBER_BASE = 30_000
WORLDS = (1, 2, 4)
LIMIT_S = 300
Measured = dict[str, Any]


@dataclass(frozen=True)
class Contender:
    """One way to read the tokens."""

    name: str
    packages: tuple[str, ...] = ()
    """Of its own environment; none = this one."""
    workers: tuple[int, ...] = (0, 2)
    """Loading processes that are tried before the rounds; the faster number is kept."""
    resumes: bool = True


CONTENDERS = (
    Contender("recurra", workers=(0,)),
    Contender("mosaicml", ("mosaicml-streaming==0.13.0",)),
    Contender("litdata", ("litdata==0.2.76",)),
    Contender("webdataset", ("webdataset==1.0.2",), resumes=False),
    Contender("ray_data", ("ray[data,train]==2.60.0",), workers=(0,), resumes=False),
)


@dataclass(frozen=True)
class Bench:
    """What all measurements share."""

    work: Path
    venvs: Path
    server: EmbeddedServer
    client: Any
    endpoints: dict[str, str]
    """Network profile -> address."""
    seconds: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=8.0, help="of each measurement, from its first batch on")
    parser.add_argument("--sequences", type=int, default=600_000, help="of the dataset whose reading is timed")
    parser.add_argument("--only", nargs="*", help="names of contenders")
    parser.add_argument("--venvs", type=Path, default=Path(tempfile.gettempdir()) / "recurra-bench-venvs")
    options = parser.parse_args()
    contenders = [one for one in CONTENDERS if not options.only or one.name in options.only]
    with tempfile.TemporaryDirectory(prefix="recurra-bench-") as folder:
        work = Path(folder)
        with serving(work) as (server, client, endpoints):
            bench = Bench(work, options.venvs, server, client, endpoints, options.seconds)
            for name, count in (("timed", options.sequences), ("small", 40_000)):
                make_tokens(work / f"{name}.npz", count)
                for contender in contenders:
                    publish(bench, contender, name)
            ceilings = measure_ceilings(bench)
            workers = {one.name: best_workers(bench, one) for one in contenders}
            exact = {one.name: check_epoch(bench, one, workers[one.name]) for one in contenders}
            rounds = [measure_all(bench, contenders, workers, number) for number in range(options.rounds)]
    print_summary(rounds, exact, ceilings)


@contextmanager
def serving(work: Path) -> Iterator[tuple[EmbeddedServer, Any, dict[str, str]]]:
    """The S3 server and the relay in front of it, both on the first core."""
    server = EmbeddedServer(work / "s3")
    server.start()
    relay = None
    try:
        server.create_bucket(BUCKET)
        environment = server.environment()
        os.environ.update(environment)
        client = boto3.client("s3", endpoint_url=server.endpoint_url, region_name="us-east-1")
        url = urlsplit(server.endpoint_url)
        relay = subprocess.Popen(
            [sys.executable, HERE / "slow_s3.py", str(url.hostname), str(url.port)], stdout=subprocess.PIPE, text=True
        )
        assert relay.stdout is not None and server.pid is not None
        port = int(relay.stdout.readline())
        pin(server.pid, [0])
        pin(relay.pid, [0])
        yield server, client, {"raw": server.endpoint_url, "distant": f"http://127.0.0.1:{port}"}
    finally:
        if relay is not None:
            relay.kill()
            relay.wait()
        server.stop()


def pin(pid: int, cpus: list[int]) -> None:
    """All threads of a process."""
    for task in Path(f"/proc/{pid}/task").iterdir():
        os.sched_setaffinity(int(task.name), cpus)


def make_tokens(file: Path, sequences: int) -> None:
    """Sequences as one array and the places to cut it; the first two tokens of each spell its number."""
    generator = np.random.default_rng(7)
    lengths = np.clip(generator.lognormal(np.log(60), 1.0, sequences).astype(np.int64), 4, 2000)
    ends = np.cumsum(lengths)
    tokens = generator.integers(1, NUMBER_BASE, ends[-1], dtype=np.uint16)
    starts = ends - lengths
    tokens[starts], tokens[starts + 1] = np.divmod(np.arange(sequences), NUMBER_BASE)
    np.savez(file, tokens=tokens, cuts=ends[:-1])
    print(f"{sequences} sequences, {ends[-1]} tokens, {tokens.nbytes / 1e6:.0f} MB", flush=True)


def python_of(bench: Bench, contender: Contender) -> Path:
    """The interpreter of the contender's environment, which is made the first time."""
    if not contender.packages:
        return Path(sys.executable)
    folder = bench.venvs / "-".join(package.replace("[data,train]", "") for package in contender.packages)
    done = folder / "installed"
    if not done.exists():
        print(f"installing {', '.join(contender.packages)} into {folder}", flush=True)
        venv.create(folder, with_pip=True, clear=True)
        packages = [f"torch=={torch.__version__.partition('+')[0]}", f"pyarrow=={pa.__version__}", *contender.packages]
        subprocess.run(
            [
                folder / "bin/python",
                "-m",
                "pip",
                "install",
                "--quiet",
                "--no-compile",
                "--disable-pip-version-check",
                *packages,
            ],
            check=True,
        )
        done.touch()
    return folder / "bin" / "python"


def publish(bench: Bench, contender: Contender, dataset: str) -> None:
    """Write the dataset in the contender's format and put its files into the bucket."""
    folder = bench.work / f"{dataset}-{contender.name}"
    folder.mkdir()
    begin = time.perf_counter()
    subprocess.run(
        [python_of(bench, contender), script_of(contender), "write", bench.work / f"{dataset}.npz", folder],
        check=True,
        stdout=subprocess.DEVNULL,
        cwd=bench.work,
    )
    files = [file for file in sorted(folder.rglob("*")) if file.is_file()]
    for file in files:
        bench.client.upload_file(str(file), BUCKET, f"{dataset}/{contender.name}/{file.relative_to(folder)}")
    size = sum(file.stat().st_size for file in files)
    print(f"{contender.name} wrote {size / 1e6:.0f} MB in {time.perf_counter() - begin:.0f} s", flush=True)
    shutil.rmtree(folder)


def script_of(contender: Contender) -> Path:
    return PEERS / f"peer_{contender.name}.py"


def read(
    bench: Bench,
    contender: Contender,
    dataset: str,
    *,
    workers: int,
    network: str = "raw",
    world: int = 1,
    seconds: float = 0.0,
    stop_after: int = 0,
    state: Any = None,
    mode: str = "buckets",
) -> list[Measured]:
    """What each reader counted; readers start together, each with an empty cache, always in the same place: litdata goes on
    nowhere else."""
    endpoint = bench.endpoints[network]
    signer = boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1")
    prefix = f"{dataset}/{contender.name}"
    keys = [item["Key"] for item in bench.client.list_objects_v2(Bucket=BUCKET, Prefix=f"{prefix}/")["Contents"]]
    credentials = bench.server.environment()
    processes = 1 if contender.name == "ray_data" else world
    shared = bench.work / "caches"
    shared.mkdir()
    try:
        started = []
        for rank in range(processes):
            request = {
                "location": f"s3://{BUCKET}/{prefix}",
                "files": [signer.generate_presigned_url("get_object", {"Bucket": BUCKET, "Key": key}) for key in keys],
                "endpoint": endpoint,
                "access_key": credentials["AWS_ACCESS_KEY_ID"],
                "secret_key": credentials["AWS_SECRET_ACCESS_KEY"],
                "folder": str(shared),
                "rank": rank,
                "world": world,
                "workers": workers,
                "batch": BATCH,
                "seconds": seconds,
                "stop_after": stop_after,
                "state": state,
                "cpus": [1] if world == 1 else [0, 1],
                "mode": mode,
            }
            started.append(start_reader(bench, contender, request))
        return [finish_reader(bench, contender, process) for process in started]
    finally:
        shutil.rmtree(shared)


def start_reader(bench: Bench, contender: Contender, request: Measured) -> subprocess.Popen[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "RAY_"))}
    environment |= {"OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29511"}
    process = subprocess.Popen(
        [python_of(bench, contender), script_of(contender), "read"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=(bench.work / f"{contender.name}.log").open("w"),
        text=True,
        env=environment,
        cwd=request["folder"],
        start_new_session=True,
    )
    assert process.stdin is not None
    process.stdin.write(json.dumps(request))
    process.stdin.close()
    process.stdin = None
    return process


def finish_reader(bench: Bench, contender: Contender, process: subprocess.Popen[str]) -> Measured:
    """The reader's counts; it and all that it started are ended."""
    try:
        output, _ = process.communicate(timeout=LIMIT_S)
    except subprocess.TimeoutExpired:
        output = ""
    end_session(process.pid)
    process.wait()
    lines = output.splitlines()
    if not lines or not lines[-1].startswith("{"):
        said = (bench.work / f"{contender.name}.log").read_text(errors="replace")[-2000:]
        raise RuntimeError(f"{contender.name} gave no answer. The end of what it said:\n{said}")
    counts: Measured = json.loads(lines[-1])
    return counts


def end_session(leader: int) -> None:
    """Kill every process of the session that a reader led."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if os.getsid(int(entry.name)) == leader:
                    os.kill(int(entry.name), 9)
            except ProcessLookupError:
                continue


def rate_of(found: list[Measured]) -> float:
    """Tokens a second of all readers together, from their first batches on; a reader that got no further has none."""
    going = [one for one in found if one["batches"] > 1]
    return sum((one["tokens"] - one["first_tokens"]) / (one["elapsed_s"] - one["first_batch_s"]) for one in going)


def best_workers(bench: Bench, contender: Contender) -> int:
    rates = {
        workers: rate_of(read(bench, contender, "timed", workers=workers, seconds=bench.seconds))
        for workers in contender.workers
    }
    print(f"{contender.name}: " + ", ".join(f"{n} workers {rate / 1e6:.2f} M tokens/s" for n, rate in rates.items()))
    return max(rates, key=lambda workers: rates[workers])


def check_epoch(bench: Bench, contender: Contender, workers: int) -> Measured:
    """Sequences seen twice or never in one epoch: by two readers, and by one that is stopped in the middle."""
    total = 40_000
    found: Measured = {"two_readers": missing_and_doubled(read(bench, contender, "small", workers=0, world=2), total)}
    if contender.resumes:
        half = total // BATCH // 2
        (first,) = read(bench, contender, "small", workers=workers, stop_after=half)
        (second,) = read(bench, contender, "small", workers=workers, state=first["state"])
        found["resumed"] = missing_and_doubled([first, second], total)
        found["resume_ms"] = 1000 * second["first_batch_s"]
    print(f"{contender.name}: {found}", flush=True)
    return found


def missing_and_doubled(found: list[Measured], total: int) -> dict[str, int]:
    seen = Counter(number for one in found for number in one["numbers"])
    return {"duplicates": sum(seen.values()) - len(seen), "drops": total - len(seen)}


def measure_ceilings(bench: Bench) -> Measured:
    """What the machine gives: copying memory, and one connection that does nothing with what it gets."""
    source = np.ones(64 << 20, np.uint8)
    target = np.empty_like(source)
    np.copyto(target, source)
    begin = time.perf_counter()
    for _ in range(20):
        np.copyto(target, source)
    copy = 20 * source.nbytes / (time.perf_counter() - begin)
    key = max(bench.client.list_objects_v2(Bucket=BUCKET, Prefix="timed/")["Contents"], key=lambda item: item["Size"])[
        "Key"
    ]
    url = bench.client.generate_presigned_url("get_object", {"Bucket": BUCKET, "Key": key})
    size, begin = 0, time.perf_counter()
    for _ in range(5):
        with urllib.request.urlopen(url) as response:
            while count := response.readinto(memoryview(target)):
                size += count
    return {"memcpy_gb_s": round(copy / 1e9, 2), "get_gb_s": round(size / (time.perf_counter() - begin) / 1e9, 2)}


def measure_all(
    bench: Bench, contenders: list[Contender], workers: dict[str, int], number: int
) -> dict[str, dict[str, Measured]]:
    """One round: contender -> case -> figures."""
    found: dict[str, dict[str, Measured]] = {one.name: {} for one in contenders}
    for mode in ("lanes", "packed") if "recurra" in found else ():
        (counted,) = read(bench, CONTENDERS[0], "timed", workers=0, seconds=bench.seconds, mode=mode)
        found["recurra"][f"raw x1, {mode}"] = figures_of([counted], 1)
    for network, world in (("raw", 1), ("distant", 1), *(("raw", world) for world in WORLDS[1:])):
        for contender in contenders:
            counted = read(
                bench,
                contender,
                "timed",
                workers=workers[contender.name] if world == 1 else 0,
                network=network,
                world=world,
                seconds=bench.seconds,
            )
            figures = figures_of(counted, world)
            found[contender.name][f"{network} x{world}"] = figures
            print(
                f"round {number + 1}: {network} x{world} {contender.name}: {figures['tokens_s'] / 1e6:.2f} M tokens/s, "
                f"first batch {figures['first_batch_ms']:.0f} ms",
                flush=True,
            )
    return found


def figures_of(counted: list[Measured], world: int) -> Measured:
    tokens = sum(one["tokens"] for one in counted)
    return {
        "tokens_s": rate_of(counted),
        "per_core": rate_of(counted) / min(world, 2),
        "cold_tokens_s": tokens / max(one["elapsed_s"] for one in counted),
        "padding_waste": 1 - tokens / sum(one["padded"] for one in counted),
        "first_batch_ms": 1000 * max(one["first_batch_s"] for one in counted),
        "cpu_s_per_gb": sum(one["cpu_s"] for one in counted) / (2 * tokens / 1e9),
        "peak_mb": sum(one["peak_bytes"] for one in counted) / 1e6,
    }


def print_summary(rounds: list[dict[str, dict[str, Measured]]], exact: dict[str, Measured], ceilings: Measured) -> None:
    middle = {
        name: {
            case: {key: statistics.median(one[name][case][key] for one in rounds) for key in figures}
            for case, figures in cases.items()
        }
        for name, cases in rounds[0].items()
    }
    cases = list(dict.fromkeys(case for found in middle.values() for case in found))
    print("\n| case | contender | M tokens/s | a core | cold | padding | first batch ms | CPU-s/GB | memory MB |")
    print("|---|---|---|---|---|---|---|---|---|")
    for case in cases:
        for name, found in middle.items():
            if case not in found:
                continue
            one = found[case]
            print(
                f"| {case} | {name} | {one['tokens_s'] / 1e6:.2f} | {one['per_core'] / 1e6:.2f} | "
                f"{one['cold_tokens_s'] / 1e6:.2f} | {one['padding_waste']:.1%} | {one['first_batch_ms']:.0f} | "
                f"{one['cpu_s_per_gb']:.1f} | {one['peak_mb']:.0f} |"
            )
    result: Measured = {"bench": "data", "rounds": len(rounds), **ceilings, "exact": exact}
    peers = {name: middle[name]["raw x1"]["tokens_s"] for name in middle if name != "recurra"}
    if "recurra" in middle:
        ours = middle["recurra"]["raw x1"]
        result |= {
            "ours_tokens_s": round(ours["tokens_s"]),
            "ours_cold_tokens_s": round(ours["cold_tokens_s"]),
            "padding_waste": round(ours["padding_waste"], 4),
            "padding_waste_lanes": round(middle["recurra"]["raw x1, lanes"]["padding_waste"], 4),
            "padding_waste_packed": round(middle["recurra"]["raw x1, packed"]["padding_waste"], 4),
            "lanes_tokens_s": round(middle["recurra"]["raw x1, lanes"]["tokens_s"]),
            "first_batch_ms": round(ours["first_batch_ms"]),
            "first_batch_distant_ms": round(middle["recurra"]["distant x1"]["first_batch_ms"]),
            "resume_ms": round(exact["recurra"]["resume_ms"]),
        }
        if peers:
            best = max(peers, key=lambda name: peers[name])
            result |= {
                "best_peer": best,
                "best_peer_tokens_s": round(peers[best]),
                "ratio": round(ours["tokens_s"] / peers[best], 1),
            }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
