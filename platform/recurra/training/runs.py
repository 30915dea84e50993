"""Runs as the store tells of them, without Ray: which there are, how far each is, and how two of them differ."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from recurra.config.load import nearest
from recurra.errors import NotFoundError, TrainingError
from recurra.storage.store import ObjectInfo, Store
from recurra.storage.url import open_store
from recurra.training.callbacks.records import TAIL
from recurra.training.finish import RESULT
from recurra.training.lease import EXPIRY_S, newest_lease
from recurra.training.start import DATA, JOB

State = Literal["running", "finished", "failed", "stopped", "lost"]
"""stopped = its command was ended in good order before the last step; lost = the command fell silent."""

_SILENT_S = 3 * EXPIRY_S
"""A lease that was not renewed for so long, by this machine's clock and the store's, is nobody's."""
_READERS = 16


@dataclass(frozen=True)
class RunSummary:
    """One run in short."""

    name: str
    state: State
    task: str
    cell: str
    step: int
    """Updates so far."""
    steps: int | None
    """Of the whole run, where it is known."""
    loss: float | None
    """Of the last update."""
    metrics: dict[str, float] = field(default_factory=dict)
    """Of the last evaluation; of the best checkpoint over all evaluation data once the run has finished."""
    attempts: int = 0
    workers: int | None = None
    """Of the last attempt."""
    started_s: float | None = None
    """First start, in seconds since 1970."""
    heard_s: float | None = None
    """Last sign of life."""
    tokens_per_s: float | None = None
    """Real time steps a second, over the last updates that were logged."""
    reason: str = ""
    """Why it ended, or the error that ended its last attempt."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def list_runs(url: str) -> list[RunSummary]:
    """All runs below a prefix, those that were heard of last first.

    Args:
        url: Such as `s3://recurra/runs`.
    """
    store = open_store(url)
    keys: dict[str, list[ObjectInfo]] = {}
    for info in store.list():
        name, slash, _ = info.key.partition("/")
        if slash:
            keys.setdefault(name, []).append(info)
    names = [name for name, infos in keys.items() if any(info.key == f"{name}/{JOB}" for info in infos)]
    with ThreadPoolExecutor(_READERS) as readers:
        found = list(readers.map(lambda name: summarise(store.child(name)), names))
    return sorted(found, key=lambda run: -(run.heard_s or 0.0))


def open_run(url: str, name: str) -> Store:
    """The prefix of a run.

    Raises:
        TrainingError: There is no such run; the message names one that is spelled alike.
    """
    store = open_store(url)
    if (run := store.child(name)).exists(JOB):
        return run
    known = sorted({info.key.partition("/")[0] for info in store.list() if info.key.endswith(f"/{JOB}")})
    raise TrainingError(f"There is no run '{name}' in {store.url}. {nearest(name, known)} See 'recurra runs list'.")


def summarise(store: Store, clock: Callable[[], float] = time.time) -> RunSummary:
    """One run, from a handful of small objects.

    Args:
        store: Its prefix.
        clock: Seconds since 1970.
    """
    job, result, events = read_json(store, JOB), read_json(store, RESULT), read_events(store)
    starts = [event for event in events if event["event"] == "started"]
    records = last_records(store)
    last = records[-1] if records else {}
    evaluated = [event["metrics"] for event in events if event["event"] == "evaluated"]
    state, heard_s = _state(store, result, events, clock())
    step = int(last.get("step", result.get("steps", 0)))
    finished = state == "finished"
    return RunSummary(
        name=str(job.get("name", store.url.rpartition("/")[2])),
        state=state,
        task=str((job.get("task") or {}).get("kind", "-")),
        cell=str((job.get("model") or {}).get("cell", "-")),
        step=step,
        steps=starts[-1].get("steps") if starts else (job.get("train") or {}).get("steps"),
        loss=last.get("loss"),
        metrics=result.get("metrics", {}) if finished else (evaluated[-1] if evaluated else {}),
        attempts=len(starts),
        workers=starts[-1]["workers"] if starts else None,
        started_s=starts[0]["time"] if starts else None,
        heard_s=max([heard_s, float(last.get("time", 0.0))]) or None,
        tokens_per_s=_speed(records[-100:]),
        reason=_reason(state, result, events),
    )


def follow(
    store: Store, *, every_s: float, wait: Callable[[float], None] = time.sleep, silence_s: float = 60.0
) -> Iterator[RunSummary]:
    """What a run says of itself, again when it has changed or after a silence, and a last time when it has ended.

    Args:
        store: Its prefix.
        every_s: Seconds between two looks.
        wait: Sleeps that many seconds.
        silence_s: The longest that nothing is said.
    """
    said: RunSummary | None = None
    quiet_s = 0.0
    while True:
        now = summarise(store)
        changed = said is None or (now.step, now.state, now.attempts, now.metrics) != (
            said.step,
            said.state,
            said.attempts,
            said.metrics,
        )
        if changed or quiet_s >= silence_s:
            yield now
            said, quiet_s = now, 0.0
        if now.state != "running":
            return
        wait(every_s)
        quiet_s += every_s


def read_json(store: Store, key: str) -> dict[str, Any]:
    """One JSON object of the run; empty when it is not there."""
    try:
        content: dict[str, Any] = json.loads(store.read(key))
    except NotFoundError:
        return {}
    return content


def read_events(store: Store) -> list[dict[str, Any]]:
    """Events of all attempts, by time."""
    lines = [json.loads(line) for info in store.list("events/") for line in store.read(info.key).splitlines()]
    return sorted(lines, key=lambda event: float(event["time"]))


def last_records(store: Store) -> list[dict[str, Any]]:
    """Step records of the newest file of the log that has any."""
    keys = [info.key for info in store.list("metrics/") if info.size_bytes]
    for key in sorted(keys, key=lambda key: (key == TAIL, key), reverse=True):
        try:
            return [json.loads(line) for line in store.read(key).splitlines()]
        except NotFoundError:  # the tail goes when a checkpoint is written
            continue
    return []


def all_records(store: Store) -> list[dict[str, Any]]:
    """Every step record, by step."""
    lines = [json.loads(line) for info in store.list("metrics/") for line in store.read(info.key).splitlines()]
    return sorted({record["step"]: record for record in lines}.values(), key=lambda record: int(record["step"]))


def data_of(store: Store) -> dict[str, Any]:
    """Which versions of which datasets the run looks at; empty before its first start."""
    return read_json(store, DATA)


def _state(store: Store, result: dict[str, Any], events: list[dict[str, Any]], now_s: float) -> tuple[State, float]:
    """Of the run, and when it was heard of last, by its events and the store's clock."""
    _, lease = newest_lease(store)
    beats = [info.modified_s for info in store.list("lease/")]
    heard_s = max([*beats, *(float(event["time"]) for event in events)], default=0.0)
    last = events[-1]["event"] if events else ""
    if lease is not None and not lease.get("released"):
        return ("running", heard_s) if now_s - heard_s < _SILENT_S else ("lost", heard_s)
    if last == "failed":
        return "failed", heard_s
    return ("finished" if result and last == "finished" else "stopped"), heard_s


def _reason(state: State, result: dict[str, Any], events: list[dict[str, Any]]) -> str:
    if state == "finished":
        return str(result.get("reason", ""))
    failures = [event for event in events if event["event"] == "failed"]
    return str(failures[-1]["error"]) if failures and state != "running" else ""


def _speed(records: list[dict[str, Any]]) -> float | None:
    seconds = sum(float(record["seconds"]) for record in records)
    return sum(int(record["tokens"]) for record in records) / seconds if seconds > 0 else None
