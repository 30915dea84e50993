"""The loop on Ray Train: workers are placed, restarted and resized by Ray; data and state are ours.

Ray keeps no checkpoint of ours: it restarts the function below, which goes on from the newest manifest in the store.
"""

from __future__ import annotations

import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from recurra.config.env import apply_ray_environment, ray_address

apply_ray_environment()  # Ray reads its variables when it is imported.

import ray
import ray.exceptions
import ray.train
import ray.train.collective
from ray.train.v2._internal.callbacks import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from recurra.config.load import dump, parse
from recurra.errors import ClusterError, RecurraError, TrainingError
from recurra.telemetry.fleet import SOME_MEMORY, FleetReporter
from recurra.telemetry.metrics import Metrics
from recurra.training.callbacks.preemption import SaveBeforePreemption
from recurra.training.events import RunEvent
from recurra.training.failures import comes_again, own_error
from recurra.training.lease import Lease
from recurra.training.ranks import join_group, leave_group
from recurra.training.ray_control import FailForGood, OneSize, WatchForPreemption
from recurra.training.relay import Relay
from recurra.training.result import RunResult
from recurra.training.run import TrainRun
from recurra.training.start import check_against_earlier_start, keep_command
from recurra.training.work import Surroundings, work

UNKNOWN_DEADLINE_S = 120.0
"""What Ray itself assumes when a node goes without saying when."""
SILENCE_S = 8.0
"""After so long without an event the driver says what it is waiting for."""


def launch(run: TrainRun, address: str | None, on_event: Callable[[RunEvent], None]) -> RunResult:
    """Train on a Ray cluster, to the end.

    Args:
        run: A run of this name that was interrupted is gone on with.
        address: Of the cluster; None = `RECURRA_ADDRESS`, the cluster this process is connected to, or one of its own.
        on_event: Told what happens, from another thread.

    Raises:
        ConfigError, DataError, StorageError: What the job file names is not there or does not fit.
        TrainingError: Another launch of this run is going on, or workers were lost too often.
        ClusterError: The cluster is not there, or has no room for the workers.
    """
    run.check()
    store = run.open_store()
    check_against_earlier_start(run, store)
    with Lease(store, run.name) as lease, connected(address):
        keep_command(store)
        on_event(RunEvent("start", f"placing {_in_words(run)}"))
        gpu = _wants_gpu(run)
        _wait_for_room(run, gpu)
        relay = _start_relay()
        listener = _Listener(relay, on_event)
        try:
            _trainer(run, {"run": dump(run), "relay": relay, "gpu": gpu, "lease": lease.number}).fit()
        except ray.exceptions.RayActorError as exc:
            raise ClusterError(f"The cluster lost the run's controller ({exc}). Start the run again.") from exc
        except ray.train.TrainingFailedError as exc:
            raise _as_ours(exc, run) from exc
        finally:
            listener.close()
        return _outcome(relay)


class _Listener:
    """Hands the relay's events on, and breaks silences."""

    def __init__(self, relay: Any, on_event: Callable[[RunEvent], None]) -> None:
        self._relay = relay
        self._on_event = on_event
        self._last = RunEvent("start", "starting workers")
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._listen, name="run events", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Hand on what is still there, and stop."""
        self._ending.set()
        self._thread.join(timeout=10.0)

    def _listen(self) -> None:
        heard_s = told_s = time.monotonic()
        while True:
            ending = self._ending.wait(0.3)
            try:
                events = [RunEvent(**event) for event in ray.get(self._relay.drain.remote(), timeout=10.0)]
            except (ray.exceptions.RayError, TimeoutError):
                events = []
            for event in events:
                self._on_event(event)
                self._last = event
                heard_s = told_s = time.monotonic()
            if ending:
                return
            now_s = time.monotonic()
            if now_s - told_s >= SILENCE_S:
                told_s = now_s
                waiting = f"no news for {now_s - heard_s:.0f} s; last: {self._last.phase} {self._last.text}".rstrip()
                self._on_event(RunEvent(self._last.phase, waiting, self._last.step, self._last.steps))


def _trainer(run: TrainRun, config: dict[str, Any]) -> DataParallelTrainer:
    low, high = run.train.worker_range
    return _LeanTrainer(
        _work_on_ray,
        train_loop_config=config,
        scaling_config=ray.train.ScalingConfig(
            num_workers=low if low == high else (low, high),
            use_gpu=config["gpu"],
            resources_per_worker=_resources(run, config["gpu"]),
        ),
        run_config=ray.train.RunConfig(
            name=run.name,
            # Ray writes nothing there but an empty marker, since no checkpoint goes through it: any local path will
            # do on every node, and no credentials are pickled.
            storage_path=str(Path(tempfile.gettempdir()) / f"recurra-ray-train-{os.getuid()}"),
            failure_config=ray.train.FailureConfig(max_failures=run.train.max_failures),
            logging_config=ray.train.LoggingConfig(log_level="ERROR"),
        ),
    )


class _LeanTrainer(DataParallelTrainer):  # type: ignore[misc]
    """Ray's trainer without four helper processes of 2 to 3 s of CPU each: one looks after Ray datasets, which we have none
    of, one after placement groups of a controller that died, which end with our driver, and two do what ray_control.py
    does. TorchTrainer's own group setup would import torch in the controller, too; ours is `join_group`.
    """

    def _create_default_callbacks(self) -> list[Any]:
        unused = (DatasetsCallback, PlacementGroupCleanerCallback)
        return [callback for callback in super()._create_default_callbacks() if not isinstance(callback, unused)]

    def _initialize_and_run_controller(self, **arguments: Any) -> Any:
        arguments["failure_policy"] = FailForGood(self.run_config.failure_config)
        if not self.scaling_config.elasticity_enabled:
            arguments["scaling_policy"] = OneSize(self.scaling_config)
        arguments["callbacks"] = [*arguments["callbacks"], WatchForPreemption()]
        return super()._initialize_and_run_controller(**arguments)


def _work_on_ray(config: dict[str, Any]) -> None:
    """What every worker runs; started again, in new processes, when one was lost."""
    relay = config["relay"]
    if isinstance(ray.get(relay.outcome.remote()), RecurraError):
        return  # The attempt before this one met an error that trying again does not cure.
    run = parse(config["run"], TrainRun)
    context = ray.train.get_context()
    rank, size = context.get_world_rank(), context.get_world_size()
    cause = ray.get(relay.begin.remote(size)) if rank == 0 else None
    host = ray.util.get_node_ip_address()
    join_group(rank, size, host=host, gpu=config["gpu"], agree=ray.train.collective.broadcast_from_rank_zero)
    metrics = Metrics(run=run.name)
    surroundings = Surroundings(
        device="cuda:0" if config["gpu"] else "cpu",
        emit=lambda event: relay.tell.remote(event.to_json()),
        metrics=metrics,
        lease=config["lease"],
        cause=cause,
        # Not before the ranks have met: Ray can carry one collective call at a time.
        callbacks=[SaveBeforePreemption(_PreemptionWatch(relay if rank == 0 else None).deadline)],
    )
    with FleetReporter(metrics, f"train-rank{rank}"):
        try:
            result = work(run, surroundings)
        except RecurraError as exc:
            if comes_again(exc):
                ray.get(relay.end.remote(type(exc)(str(exc))))
            raise
    leave_group()
    if rank == 0:
        ray.get(relay.end.remote(result))


class _PreemptionWatch:
    """Asks Ray every second, from a thread since every rank must ask, whether a node of the run is about to go."""

    def __init__(self, relay: Any | None) -> None:
        self._relay = relay
        self._deadline_s: float | None = None
        threading.Thread(target=self._watch, name="preemption watch", daemon=True).start()

    def deadline(self) -> float | None:
        """When the node goes, in seconds since 1970; None while none is known to."""
        return self._deadline_s

    def _watch(self) -> None:
        while (info := ray.train.get_preemption_info()) is None:
            time.sleep(1.0)
        self._deadline_s = info.deadline_ms / 1000 if info.deadline_ms else time.time() + UNKNOWN_DEADLINE_S
        if self._relay is not None:
            self._relay.preempt.remote()


@contextmanager
def connected(address: str | None) -> Iterator[None]:
    """A connection to a cluster inside the block; one that was there before stays."""
    if ray.is_initialized():
        yield
        return
    where = address or ray_address()
    try:
        ray.init(
            address=where or "local",
            namespace="recurra",
            log_to_driver=False,
            logging_level="ERROR",
            include_dashboard=None if where else False,
        )
    except (ConnectionError, TimeoutError, RuntimeError) as exc:
        raise ClusterError(
            f"No Ray cluster answers at {where or 'a local port'} ({exc}). Give --address host:port of a running one."
        ) from exc
    try:
        yield
    finally:
        ray.shutdown()


def _wants_gpu(run: TrainRun) -> bool:
    if run.train.gpu == "auto":
        return bool(ray.cluster_resources().get("GPU", 0) >= run.train.worker_range[0])
    return run.train.gpu


def _resources(run: TrainRun, gpu: bool) -> dict[str, float]:
    return {"CPU": float(run.train.threads), **({"GPU": 1.0} if gpu else {})}


def _wait_for_room(run: TrainRun, gpu: bool) -> None:
    """Try the placement before Ray Train does, which would wait for ever; an autoscaler sees the demand, too."""
    bundle = _resources(run, gpu)
    group = placement_group([bundle] * run.train.worker_range[0], strategy="PACK")
    try:
        if group.wait(run.train.start_timeout):
            return
        total, free = ray.cluster_resources(), ray.available_resources()
        have = ", ".join(f"{name} {free.get(name, 0):g} free of {total.get(name, 0):g}" for name in bundle)
        need = " and ".join(f"{name} {amount:g}" for name, amount in bundle.items())
        raise ClusterError(
            f"The cluster has no room for {_in_words(run)} with {need} each (train.workers, train.threads, train.gpu): "
            f"{have}. Waited {run.train.start_timeout:g} s. Stop something, add nodes, or ask for less."
        )
    finally:
        remove_placement_group(group)


def _start_relay() -> Any:
    here = ray.get_runtime_context().get_node_id()
    actor = ray.remote(Relay).options(
        num_cpus=0,
        memory=SOME_MEMORY,
        max_restarts=-1,
        scheduling_strategy=NodeAffinitySchedulingStrategy(here, soft=True),
    )
    return actor.remote()


def _outcome(relay: Any) -> RunResult:
    outcome: RunResult | RecurraError | None = ray.get(relay.outcome.remote())
    if isinstance(outcome, RecurraError):
        raise outcome
    if outcome is None:
        raise TrainingError("The workers ended without a result. Look at their logs: 'recurra logs'.")
    return outcome


def _as_ours(error: BaseException, run: TrainRun) -> RecurraError:
    """The error of a worker, if it is one of ours; else that workers were lost."""
    failures = getattr(error, "worker_failures", None) or {0: error}
    if (own := own_error(failures)) is not None:
        return own
    rank, cause = min(failures.items())
    return TrainingError(
        f"Workers were lost more than train.max_failures = {run.train.max_failures} times; the last was rank {rank}: "
        f"{str(cause).strip().splitlines()[-1]}. Start the run again to go on from its last checkpoint."
    )


def _in_words(run: TrainRun) -> str:
    low, high = run.train.worker_range
    return f"{low} worker{'s' if low > 1 else ''}" if low == high else f"{low} to {high} workers"
