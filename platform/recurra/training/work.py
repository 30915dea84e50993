"""What every rank of a run does, with Ray or without: build, train, finish."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from recurra.telemetry.metrics import Metrics
from recurra.training.callbacks.base import Callback, load_callback
from recurra.training.callbacks.checkpointing import SaveRegularly
from recurra.training.callbacks.evaluation import EvaluateRegularly
from recurra.training.callbacks.export import ExportMetrics
from recurra.training.callbacks.progress import TellProgress
from recurra.training.callbacks.records import KeepRecords
from recurra.training.callbacks.stall import WatchForStalls
from recurra.training.callbacks.stopping import StopWhenDone
from recurra.training.events import RunEvent
from recurra.training.finish import finish
from recurra.training.lease import Lease, check_lease
from recurra.training.loggers import make_loggers
from recurra.training.loop import run_loop
from recurra.training.ranks import Ranks, current_ranks
from recurra.training.result import RunResult
from recurra.training.run import Origin, TrainRun
from recurra.training.start import check_against_earlier_start, easier_name, keep_command, keep_facts


@dataclass(frozen=True)
class Surroundings:
    """What a rank finds where it runs."""

    emit: Callable[[RunEvent], None]
    """Takes rank 0's events; must not block."""
    ranks: Ranks | None = None
    """None = the process group that torch.distributed was initialised with, or one rank."""
    device: str = "cpu"
    metrics: Metrics | None = None
    """With the label `run` bound; None = nobody asks for them."""
    lease: int | None = None
    """Number of the lease that this launch holds; None = nobody can take the run over."""
    cause: str | None = None
    """Why the attempt before this one ended: failure, preemption or resize; None for the first."""
    callbacks: list[Callback] = field(default_factory=list)
    """Told of every event after our own."""


def work(run: TrainRun, surroundings: Surroundings) -> RunResult | None:
    """Train to the end; all ranks of the process group call it. Gives the result on rank 0, None on the others."""
    torch.set_num_threads(run.train.threads)
    torch.backends.cuda.matmul.allow_tf32 = run.train.precision == "tf32"
    torch.backends.cudnn.allow_tf32 = run.train.precision == "tf32"  # torch's default is true, whatever fp32 says
    ranks = surroundings.ranks or current_ranks()
    attempt: str = ranks.broadcast(secrets.token_hex(4))
    leads = ranks.rank == 0
    emit = surroundings.emit if leads else _ignore
    store = run.open_store()
    data = ranks.broadcast(keep_facts(run, store) if leads else None)
    origin = Origin(
        attempt=attempt,
        device=surroundings.device,
        train_version=data["train"]["version"],
        eval_version=data["eval"]["version"] if data["eval"] else None,
        warn=lambda text: emit(RunEvent("warning", text)),
        fence=lambda: None if surroundings.lease is None else check_lease(store, surroundings.lease),
        easier_versions=tuple(data[easier_name(stage)]["version"] for stage in range(len(run.data.easier))),
    )
    loggers = make_loggers(run, store, attempt=attempt, warn=origin.warn) if leads else []
    trainer = run.build(ranks, origin)
    callbacks: list[Callback] = [
        WatchForStalls(store, attempt=attempt, rank=ranks.rank, emit=emit),
        EvaluateRegularly(),
        StopWhenDone(),
        SaveRegularly(),
    ]
    if leads:
        callbacks += [KeepRecords(store, attempt=attempt), TellProgress(emit)]
        callbacks += loggers
    if surroundings.metrics is not None:
        callbacks.append(ExportMetrics(surroundings.metrics, cause=surroundings.cause))
    callbacks += map(load_callback, run.train.callbacks)
    callbacks += surroundings.callbacks
    result = finish(run, trainer, store, run_loop(trainer, callbacks), emit)
    if result is not None:
        for callback in callbacks:
            callback.reported(result)
    return result


def train_here(run: TrainRun, emit: Callable[[RunEvent], None] = lambda event: None) -> RunResult:
    """Train in this process, without Ray; errors are those of `ray_launch.launch`."""
    run.check()
    store = run.open_store()
    check_against_earlier_start(run, store)
    with Lease(store, run.name) as lease:
        keep_command(store)
        result = work(run, Surroundings(emit=emit, lease=lease.number))
    assert result is not None
    return result


def _ignore(event: RunEvent) -> None:
    """Only rank 0 speaks."""
