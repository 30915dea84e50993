"""What a job file would run, checked before anything is paid for: each problem says what to change."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from recurra.config.env import apply_ray_environment
from recurra.data.dataset import Dataset
from recurra.errors import ClusterError, RecurraError, TrainingError
from recurra.models.config import ModelConfig
from recurra.models.sequence import Model
from recurra.orchestration.address import ClusterAddress
from recurra.orchestration.job_file import JobFile
from recurra.storage.url import open_store
from recurra.tasks.base import Task
from recurra.training.run import TrainRun
from recurra.training.runs import summarise
from recurra.training.start import JOB, check_against_earlier_start

_GATES = {"rnn": 1, "gru": 3, "lstm": 4, "minlstm": 3, "mingru": 2, "ntm": 4}


@dataclass
class Plan:
    """Sections of facts, and what is in the way."""

    name: str
    facts: dict[str, dict[str, Any]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, "ready": not self.problems, **self.facts, "problems": self.problems}


@dataclass(frozen=True)
class Resources:
    """Of a cluster, in all and free now."""

    total: dict[str, float]
    free: dict[str, float]


def make_plan(job: JobFile, resources: Resources | None) -> Plan:
    """Look at data, stores, model and cluster; goes on after each problem, so that all are seen at once.

    Args:
        job: The job file with its overrides.
        resources: Of the cluster that would run it; None = none is known, and nothing is said about it.
    """
    plan = Plan(job.name)
    if job.train is not None:
        with _noting(plan):
            _plan_training(plan, job, resources)
    if job.serve is not None or job.publish is not None:
        with _noting(plan):
            _plan_serving(plan, job, resources)
    return plan


def cluster_resources(cluster: ClusterAddress) -> Resources:
    """What the cluster has, asked as a driver.

    Raises:
        ClusterError: It cannot be reached.
    """
    apply_ray_environment()
    import ray  # a second to import, and a plan without a cluster needs none

    try:
        with ray.init(address=cluster.driver_address(), log_to_driver=False, logging_level="ERROR"):
            return Resources(ray.cluster_resources(), ray.available_resources())
    except (ConnectionError, RuntimeError, ValueError) as exc:
        raise ClusterError(f"The Ray cluster {cluster.gcs} cannot be reached ({exc}). Check --address.") from exc


def _plan_training(plan: Plan, job: JobFile, resources: Resources | None) -> None:
    run = job.train_run()
    _check_workers(plan, run, resources)
    with _noting(plan):
        plan.facts["run"] = _describe_run(run)
    stores = {"runs": job.runs, **({"registry": job.publish.registry} if job.publish else {})}
    plan.facts["stores"] = stores
    for name, url in stores.items():
        with _noting(plan):
            _check_writable(name, url)
    train, task, steps = _open_data(plan, run)
    if train is None or task is None:
        return
    model = task.build_model(job.model)
    plan.facts["model"] = _describe_model(job.model, model)
    memory = _worker_bytes(run, model, steps)
    plan.facts["train"] = {**_describe_batches(plan, run, train, task), "memory_per_worker": memory}
    workers = run.train.worker_range[0]
    if resources and workers * memory > resources.total.get("memory", workers * memory):
        plan.problems.append(
            f"{workers} worker{'s need' if workers > 1 else ' needs'} about {workers * memory / 2**30:.1f} GiB, the cluster has "
            f"{resources.total['memory'] / 2**30:.1f} GiB. Lower train.global_batch, train.truncated_bptt or "
            "model.hidden_size, or raise train.accumulate."
        )


def _describe_run(run: TrainRun) -> dict[str, Any]:
    """What is there under this name already.

    Raises:
        ConfigError: It was started with other settings.
        TrainingError: Another process is training it.
    """
    store = run.open_store()
    check_against_earlier_start(run, store)
    if not store.exists(JOB):
        return {"name": run.name, "begins": "from the beginning"}
    summary = summarise(store)
    if summary.state == "running":
        raise TrainingError(
            f"Run '{run.name}' is being trained now. Follow it: recurra runs watch {run.name}. Or give this one another name."
        )
    done = summary.state == "finished" and (run.train.steps is None or summary.step >= run.train.steps)
    begins = (
        "nowhere: all its steps are done; for a new run, give it another name" if done else "from its last checkpoint"
    )
    return {"name": run.name, "state": summary.state, "step": summary.step, "begins": begins}


def _open_data(plan: Plan, run: TrainRun) -> tuple[Dataset | None, Task | None, int]:
    """The training data, its task, and time steps of a typical row of a batch."""
    facts: dict[str, Any] = {}
    plan.facts["data"] = facts
    train: Dataset | None = None
    task: Task | None = None
    steps = 1
    with _noting(plan):
        train = Dataset.open(run.data.train)
        facts["train"] = _describe_data(train)
        steps = run.train.truncated_bptt or int(train.lengths().max())
        task = run.open_task(train)
    with _noting(plan):
        if run.data.easier:
            facts["curriculum"] = [_describe_data(Dataset.open(url)) for url in run.data.easier]
        facts["eval"] = "none: the last checkpoint counts as the best"
        if run.data.eval is not None:
            facts["eval"] = _describe_data(Dataset.open(run.data.eval))
        if train is not None:
            run.check()
    return train, task, steps


def _describe_data(dataset: Dataset) -> dict[str, Any]:
    lengths = dataset.lengths()
    return {
        "url": dataset.url,
        "sequences": dataset.sequences,
        "steps": dataset.steps,
        "longest": int(lengths.max()),
        "digest": str(dataset.digest)[:12],
    }


def _describe_model(config: ModelConfig, model: Model) -> dict[str, Any]:
    return {
        "cell": config.cell,
        "parameters": sum(weight.numel() for weight in model.parameters()),
        "weight_bytes": sum(weight.numel() * weight.element_size() for weight in model.parameters()),
        "session_bytes": model.state_spec.size_bytes if model.steppable else None,
    }


def _describe_batches(plan: Plan, run: TrainRun, dataset: Dataset, task: Task) -> dict[str, Any]:
    rows = _rows(run, dataset)
    low, high = run.train.worker_range
    if rows < high:
        key = "sequences" if run.train.global_batch.sequences is not None else "tokens"
        plan.problems.append(
            f"train.global_batch.{key} gives {rows} rows, fewer than train.workers = {high}: some would have nothing to do. "
            f"Raise train.global_batch.{key}, or set train.workers to {max(rows, 1)}."
        )
    per_epoch, updates = run.count_updates(dataset, task)
    return {
        "workers": low if low == high else [low, high],
        "rows_per_update": rows,
        "rows_per_worker": -(-rows // low),
        "updates_per_epoch": per_epoch,
        "updates": updates,
    }


def _rows(run: TrainRun, dataset: Dataset) -> int:
    """Rows of a typical global batch; with a budget of tokens over whole sequences it varies."""
    batch = run.train.global_batch
    if batch.sequences is not None:
        return batch.sequences
    assert batch.tokens is not None
    return max(1, batch.tokens // (run.train.truncated_bptt or max(1, dataset.steps // max(1, dataset.sequences))))


def _worker_bytes(run: TrainRun, model: Model, steps: int) -> int:
    """Weights, gradients, optimizer and activations of one worker: an estimate, on the safe side of a factor of two."""
    config = run.model
    weights = sum(weight.numel() for weight in model.parameters()) * 4
    copies: float = 2 + {"adamw": 2, "sgd": 1, "rmsprop": 3}[run.train.optimizer] + (1 if run.train.ema else 0)
    if run.train.parallel == "fsdp" and run.train.worker_range[0] > 1:
        copies = 2 + copies / run.train.worker_range[0]  # weights and gradients are whole during an update
    rows = run.train.global_batch.sequences or (run.train.global_batch.tokens or 1) // max(1, steps) or 1
    rows_here = -(-rows // (run.train.worker_range[0] * run.train.accumulate))
    units = config.hidden_size * (_GATES[config.cell] + 2) * config.layers * (2 if config.bidirectional else 1)
    if config.cell == "ntm":
        units += 4 * config.ntm.memory_rows * config.ntm.memory_width
    outputs = 3 * model.shape.output_size if model.shape.per_step else 0
    return int(weights * copies) + rows_here * steps * (units + outputs) * 4 + run.data.prefetch_bytes


def _check_workers(plan: Plan, run: TrainRun, resources: Resources | None) -> None:
    if resources is None:
        return
    low = run.train.worker_range[0]
    need = {"CPU": float(low * run.train.threads)}
    if run.train.gpu is True:
        need["GPU"] = float(low)
    plan.facts["cluster"] = {
        name: {"needed": need.get(name, 0), "free": resources.free.get(name, 0), "total": resources.total.get(name, 0)}
        for name in ("CPU", "GPU")
    }
    for name, amount in need.items():
        total = resources.total.get(name, 0.0)
        if amount > total:
            fit = int(total // (run.train.threads if name == "CPU" else 1))
            remedy = "Set train.gpu to auto or false" if name == "GPU" else "Lower train.threads"
            plan.problems.append(
                f"train.workers = {run.train.workers} needs {amount:g} {name}s, the cluster has {total:g}. "
                f"{remedy}, {f'set train.workers to {fit}, ' if fit else ''}or add nodes."
            )


def _plan_serving(plan: Plan, job: JobFile, resources: Resources | None) -> None:
    run = job.serve_run()
    low, high = run.serve.replica_range
    plan.facts["serve"] = {
        "model": run.model,
        "registry": run.registry,
        "route": run.serve.route_prefix,
        "replicas": low if low == high else [low, high],
        "slots": run.serve.slots,
        "cpus": low * run.serve.cpus_per_replica,
    }
    need = max(low, 1) * run.serve.cpus_per_replica
    if resources and need > resources.total.get("CPU", 0):
        plan.problems.append(
            f"serve.replicas = {run.serve.replicas} needs {need:g} CPUs, the cluster has {resources.total.get('CPU', 0):g}. "
            "Lower serve.replicas or serve.cpus_per_replica, or add nodes."
        )


def _check_writable(name: str, url: str) -> None:
    key = f"plan-{secrets.token_hex(6)}"
    store = open_store(url)
    try:
        store.write(key, b"written by 'recurra plan'")
        store.delete(key)
    except RecurraError as exc:
        raise type(exc)(f"{name} = {url} cannot be written: {exc}") from exc


@contextmanager
def _noting(plan: Plan) -> Iterator[None]:
    try:
        yield
    except RecurraError as exc:
        if str(exc) not in plan.problems:
            plan.problems.append(str(exc))
