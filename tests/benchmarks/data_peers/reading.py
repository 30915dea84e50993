"""What every contender of bench_data.py does the same: one reader's batches, counted and timed. Knows no contender.

A contender's file calls `run(open_reader)`; the request is JSON on standard input, the answer JSON on the last line of
standard output. The first two tokens of each sequence spell its number, so that whatever arrives says what it is.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

NUMBER_BASE = 30_000
"""Sequence n begins with the tokens n // NUMBER_BASE and n % NUMBER_BASE."""


@dataclass(frozen=True)
class Request:
    """One reader's work."""

    location: str
    """Where the contender's files lie, `s3://bucket/prefix`."""
    files: list[str]
    """Presigned addresses of the files, for a contender that takes no S3 address."""
    endpoint: str
    access_key: str
    secret_key: str
    folder: str
    """An empty directory on a local disk for caches."""
    rank: int
    world: int
    workers: int
    """Processes that the contender may load with, beside the reader itself; 0 = none."""
    batch: int
    seconds: float
    """Stop after this time from the first batch on; 0 = at the end of the epoch."""
    stop_after: int
    """Stop after so many batches; 0 = never."""
    state: Any
    """Where to go on, as an earlier reader of the contender gave it; None = at the beginning."""
    cpus: list[int]
    """Cores to stay on."""
    mode: str
    """Recurra's plan; the others have one."""


@dataclass
class Reader:
    """One contender's reader."""

    batches: Iterator[tuple[torch.Tensor, torch.Tensor]]
    """Tokens int64 [B, T], padded with zeros, and lengths [B]."""
    state: Callable[[], Any] | None = None
    """Where the reader stands, as JSON; None = the contender has no such thing."""


@dataclass
class Counts:
    """What one reader saw."""

    first_batch_s: float = 0.0
    elapsed_s: float = 0.0
    """From opening to the last batch."""
    first_tokens: int = 0
    tokens: int = 0
    padded: int = 0
    batches: int = 0
    cpu_s: float = 0.0
    peak_bytes: int = 0
    numbers: list[int] = field(default_factory=list)
    """Of the sequences seen, when the whole epoch or a part of it was asked for."""
    state: Any = None


def pad(rows: Sequence[np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
    """The collate function that one writes with torch's own means."""
    tensors = [torch.from_numpy(row.astype(np.int64)) for row in rows]
    lengths = torch.tensor([len(tensor) for tensor in tensors])
    return torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True), lengths


def count(open_reader: Callable[[Request], Reader], request: Request) -> Counts:
    """Open, read, count."""
    keeps_numbers = request.seconds == 0
    counts = Counts()
    cpu_before = cpu_seconds()
    begin = time.perf_counter()
    reader = open_reader(request)
    for tokens, lengths in reader.batches:
        now = time.perf_counter() - begin
        real = int(lengths.sum())
        if counts.batches == 0:
            counts.first_batch_s, counts.first_tokens = now, real
        counts.batches += 1
        counts.tokens += real
        counts.padded += tokens.numel()
        counts.elapsed_s = now
        if keeps_numbers:
            rows = tokens[lengths > 0]
            counts.numbers += (rows[:, 0] * NUMBER_BASE + rows[:, 1]).tolist()
        if (request.seconds and now - counts.first_batch_s > request.seconds) or counts.batches == request.stop_after:
            break
    counts.cpu_s = cpu_seconds() - cpu_before
    counts.peak_bytes = memory_bytes()
    if request.stop_after and reader.state is not None:
        counts.state = reader.state()
    return counts


def cpu_seconds() -> float:
    """Of this process and all that it has started, the ended ones too."""
    ticks = 0
    for pid in family():
        with contextlib.suppress(OSError):
            ticks += sum(int(word) for word in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:15])
    return ticks / os.sysconf("SC_CLK_TCK")


def memory_bytes() -> int:
    """Proportional set size of this process and all that it has started, now."""
    total = 0
    for pid in family():
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    total += int(line.split()[1]) << 10
    return total


def family() -> list[int]:
    """This process and its descendants."""
    found, waiting = [], [os.getpid()]
    while waiting:
        pid = waiting.pop()
        found.append(pid)
        with contextlib.suppress(OSError):
            for task in Path(f"/proc/{pid}/task").iterdir():
                waiting += [int(child) for child in (task / "children").read_text().split()]
    return found


def run(open_reader: Callable[[Request], Reader]) -> None:
    """Answer one request."""
    request = Request(**json.load(sys.stdin))
    os.sched_setaffinity(0, request.cpus)
    torch.set_num_threads(1)
    answer(count(open_reader, request))


def answer(counts: Counts) -> None:
    """Print and leave: what a contender does when it ends is not measured."""
    print("\n" + json.dumps(vars(counts)), flush=True)
    os._exit(0)


def join_ranks(request: Request) -> None:
    """torch.distributed over all readers, where a contender learns its rank from it."""
    if request.world > 1:
        os.environ.update(RANK=str(request.rank), WORLD_SIZE=str(request.world), LOCAL_RANK=str(request.rank))
        os.environ.update(LOCAL_WORLD_SIZE=str(request.world))
        torch.distributed.init_process_group("gloo")
