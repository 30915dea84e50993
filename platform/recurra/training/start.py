"""What is written down when a run starts, and what a later start may not change."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import socket
import time
from functools import cache
from pathlib import Path
from typing import Any

import recurra
from recurra.config.load import dump, value_at
from recurra.data.dataset import Dataset
from recurra.errors import ConfigError, NotFoundError
from recurra.storage.store import Store
from recurra.training.run import TrainRun
from recurra.training.source_tree import git_diff, git_state

JOB = "job.json"
ENVIRONMENT = "environment.json"
DATA = "data.json"
INSTALLED = "packages.txt"
"""Every installed distribution and its version, as pip writes them."""
PLATFORM_DIFF = "platform.patch"
"""What differs from the commit in the source tree of Recurra itself; absent where nothing does."""
COMMAND = "command.json"
"""Where the run was started: host, time, and the git state of that directory (the one the job file is kept in)."""
COMMAND_DIFF = "command.patch"
"""What differs from that commit."""
_PACKAGES = ("recurra", "torch", "ray", "pyarrow", "numpy", "safetensors", "pydantic", "boto3")
_FIXED = (
    "task",
    "model",
    "data.train",
    "data.curriculum",
    "data.mode",
    "data.shuffle",
    "data.shuffle_window",
    "train.global_batch",
    "train.truncated_bptt",
    "train.window_schedule",
    "train.optimizer",
    "train.ema",
    "train.seed",
)
"""What decides the meaning of a checkpoint: weights, moments, position in the data."""


def check_against_earlier_start(run: TrainRun, store: Store) -> None:
    """A run of this name that was started before must have been this run.

    Raises:
        ConfigError: A setting differs that the checkpoints depend on.
    """
    try:
        earlier = json.loads(store.read(JOB))
    except NotFoundError:
        return
    now = dump(run)
    for path in _FIXED:
        before, after = value_at(earlier, path), value_at(now, path)
        if before != after:
            raise ConfigError(
                f"Run '{run.name}' was started with {path} = {_shown(before)}, now it is {_shown(after)}. "
                "Undo that, or give this run another name."
            )


def keep_facts(run: TrainRun, store: Store) -> dict[str, Any]:
    """Write what job, environment and source were and, the first time, data.json; gives the content of data.json."""
    store.write(JOB, json.dumps(dump(run), indent=1).encode())
    store.write(ENVIRONMENT, json.dumps(environment(), indent=1).encode())
    store.write(INSTALLED, _installed().encode())
    _keep_diff(store, PLATFORM_DIFF, Path(recurra.__file__).parent)
    try:
        kept: dict[str, Any] = json.loads(store.read(DATA))
    except NotFoundError:
        kept = {"train": _version_of(run.data.train), "eval": _version_of(run.data.eval)}
        kept |= {easier_name(stage): _version_of(url) for stage, url in enumerate(run.data.easier)}
        store.write(DATA, json.dumps(kept, indent=1).encode())
    return kept


def easier_name(stage: int) -> str:
    """What data.json calls a dataset of the curriculum; stages count from 0."""
    return f"easier {stage + 1}"


def keep_command(store: Store, directory: Path | None = None) -> None:
    """Write command.json and command.patch: what the process that starts a run knows, and no worker does.

    Args:
        store: Of the run.
        directory: Where the command was given; None = the working directory.
    """
    directory = directory or Path.cwd()
    facts = {"host": socket.gethostname(), "time": round(time.time(), 3), "git": git_state(directory)}
    store.write(COMMAND, json.dumps(facts, indent=1).encode())
    _keep_diff(store, COMMAND_DIFF, directory)


def environment() -> dict[str, Any]:
    """Versions of what matters, and the commit of the source tree when there is one."""
    return {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "system": platform.platform(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "git": git_state(Path(recurra.__file__).parent),
    }


def _keep_diff(store: Store, key: str, directory: Path) -> None:
    """One that an earlier start left does not outlive the difference."""
    if diff := git_diff(directory):
        store.write(key, diff)
    else:
        store.delete(key)


@cache
def _installed() -> str:
    """Of this process, and read once: it takes a quarter of a second."""
    read = (item.metadata for item in importlib.metadata.distributions())  # each look at it reads the file anew
    found = {(facts["Name"] or "").lower(): facts["Version"] for facts in read}
    return "".join(f"{name}=={version}\n" for name, version in sorted(found.items()) if name)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _version_of(url: str | None) -> dict[str, Any] | None:
    """The newest version of a dataset: what is appended to it later is not part of the run."""
    if url is None:
        return None
    dataset = Dataset.open(url)
    return {
        "url": url,
        "version": dataset.version,
        "digest": dataset.digest,
        "sequences": dataset.sequences,
        "steps": dataset.steps,
        "longest": int(dataset.lengths().max(initial=0)),
    }


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else text[:77] + "..."
