"""Training on a real Ray cluster, with its data and checkpoints in a real S3 server: processes are killed for real."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch
from ray._raylet import GcsClient
from ray.core.generated import autoscaler_pb2
from ray.util.placement_group import placement_group, remove_placement_group

from recurra.cli.main import run as command_line
from recurra.config.load import dump, parse
from recurra.data.schema import Column, SequenceSchema
from recurra.data.vocabulary import ByteVocabulary
from recurra.data.write import DatasetWriter
from recurra.errors import ClusterError, DivergedError, TrainingError
from recurra.registry.loading import load_model
from recurra.registry.registry import Registry
from recurra.training.checkpoint import Checkpoints
from recurra.training.lease import Lease
from recurra.training.ranks import SingleRank
from recurra.training.ray_launch import launch
from recurra.training.report.log import read_log
from recurra.training.run import TrainRun

pytestmark = pytest.mark.ray

SEQUENCES = 96
GRACE_S = 30.0
"""Between the notice that a node goes and its end: what Kubernetes gives by default."""
STEPS = 36
"""Three epochs of 12 global batches of 8 sequences."""
EVERY = 5
"""Updates between two checkpoints."""


@pytest.fixture(scope="module")
def witness_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("witness")


@pytest.fixture(scope="module")
def environment(witness_dir: Path) -> dict[str, str]:
    """The workers' environment."""
    # What this process was told comes along: workers run the code under test, not whichever is installed.
    paths = [str(Path(__file__).with_name("on_workers")), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {"PYTHONPATH": os.pathsep.join(paths), "WITNESS_DIR": str(witness_dir)}


def connect(address: str, environment: dict[str, str]) -> None:
    ray.init(
        address=address,
        namespace="recurra",
        log_to_driver=False,
        logging_level="ERROR",
        runtime_env={"env_vars": environment},
    )


@pytest.fixture(scope="module")
def driver(ray_cluster, environment: dict[str, str]) -> Iterator[None]:
    connect(ray_cluster.address, environment)
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def base_url(s3_server) -> str:
    """A prefix with a dataset of sentences under `text`."""
    base = f"s3://recurra/training-{os.getpid()}"
    vocabulary = ByteVocabulary()
    schema = SequenceSchema((Column("tokens", vocabulary.dtype),))
    generator = np.random.default_rng(3)
    with DatasetWriter(f"{base}/text", schema, {"vocabulary": vocabulary.to_json()}) as writer:
        for _ in range(SEQUENCES):
            writer.write({"tokens": generator.integers(97, 110, generator.integers(4, 30))})
    return base


@pytest.fixture(scope="module")
def make_run(base_url: str) -> Callable[..., TrainRun]:
    def make(name: str, **train: Any) -> TrainRun:
        return TrainRun.model_validate(
            {
                "name": name,
                "task": "language_model",
                "data": {"train": f"{base_url}/text", "eval": f"{base_url}/text"},
                "model": {"hidden_size": 16, "embedding_size": 8, "regularisation": {"dropout": 0.2}},
                "train": {
                    "workers": 2,
                    "steps": STEPS,
                    "global_batch": {"sequences": 8},
                    "checkpoint_every": {"steps": EVERY},
                    "evaluate_every": STEPS,
                    "callbacks": ["training_witness:Witness", "training_witness:Held"],
                    **train,
                },
                "publish": {"model": "sentences", "alias": "candidate", "registry": f"{base_url}/registry"},
                "runs": f"{base_url}/runs",
            }
        )

    return make


@pytest.fixture(scope="module")
def undisturbed(driver, make_run) -> TrainRun:
    """A run that nobody disturbed, as what the others are compared with."""
    run = make_run("undisturbed")
    launch(run, None, lambda event: None)
    return run


@pytest.mark.timeout(900)
def test_a_run_whose_worker_is_killed_finishes_by_itself_and_exactly(undisturbed, make_run, witness_dir):
    """SIGKILL in mid-epoch, and between two checkpoints: no sequence skipped or repeated, the same weights and log."""
    run = make_run("killed")
    hold(run, witness_dir, 18)
    killer = threading.Thread(target=lambda: os.kill(held(run, witness_dir, 18)[1], signal.SIGKILL))
    killer.start()
    events = []
    result = launch(run, None, events.append)
    killer.join()

    assert [event.step for event in events if event.phase == "restart"] == [15]
    assert result.steps == STEPS
    assert_as_if_undisturbed(run, undisturbed, witness_dir, resumed_from=[None, 15])


def test_a_run_that_loses_all_workers_and_then_its_driver_ends_exactly(
    undisturbed, ray_cluster, environment, make_run, witness_dir
):
    """Ray restarts the workers; behind the driver nothing is left, and whoever types the command again goes on."""
    run = make_run("hunted")
    hold(run, witness_dir, 7, 16)
    with driven(run, ray_cluster.address, environment):
        for pid in held(run, witness_dir, 7):
            os.kill(pid, signal.SIGKILL)
        held(run, witness_dir, 16)
    launch(run, None, lambda event: None)

    assert_as_if_undisturbed(run, undisturbed, witness_dir, resumed_from=[None, 5, 15])


@pytest.mark.skipif(
    "RECURRA_TEST_NODES" not in os.environ, reason="wants a machine of its own: make test-nodes runs it"
)
def test_a_run_that_loses_all_workers_and_a_node_and_then_its_driver_ends_exactly(
    undisturbed, ray_cluster, environment, make_run, witness_dir
):
    """As above; between the two all processes of a node die at once, the raylet and a worker among them."""
    run = make_run("homeless")
    hold(run, witness_dir, 7, 16, 27)
    head = placement_group([{"CPU": 4}])  # so that the run is on the two others, with a worker on each
    ray.get(head.ready())
    nodes = [ray_cluster.add_node(1), ray_cluster.add_node(1)]
    try:
        with driven(run, ray_cluster.address, environment):
            for pid in held(run, witness_dir, 7):
                os.kill(pid, signal.SIGKILL)
            held(run, witness_dir, 16)
            ray_cluster.kill_node(nodes[1])
            nodes[1] = ray_cluster.add_node(1)
            held(run, witness_dir, 27)
        launch(run, None, lambda event: None)
    finally:
        remove_placement_group(head)
        for node in nodes:
            ray_cluster.kill_node(node)

    assert_as_if_undisturbed(run, undisturbed, witness_dir, resumed_from=[None, 5, 15, 25])


def test_the_best_checkpoint_is_published(undisturbed, base_url):
    """What training leaves for serving: a bundle that loads, under the alias of the job file."""
    loaded = load_model(Registry(f"{base_url}/registry"), "sentences@candidate")

    own = dict(loaded.model.named_parameters())
    for name, value in weights_of(undisturbed).items():
        if name.startswith("weight."):
            assert torch.equal(own[name.removeprefix("weight.")], value)
    assert loaded.bundle.lineage["run"] in ("undisturbed", "killed", "hunted", "homeless")


@pytest.mark.timeout(900)
def test_an_error_that_comes_again_is_told_once(driver, make_run):
    """Trying again does not cure a run that diverges: the user gets our error, not Ray's."""
    run = make_run("wrong", callbacks=["training_witness:Wrong"])

    with pytest.raises(DivergedError, match="the loss of this test is not finite"):
        launch(run, None, lambda event: None)


@pytest.mark.timeout(900)
def test_a_hanging_run_is_explained_and_can_be_made_again(driver, make_run, witness_dir, capsys):
    """One rank stands still, so all do: the stacks of each are in the store. `recurra rerun` has the same losses."""
    run = make_run("hanging", steps=6, guard={"stall": 1.0}, callbacks=["training_witness:Hang"])
    store = run.open_store()

    def explained() -> bool:
        stacks = [(info.key.partition("-")[2][:9], store.read(info.key).decode()) for info in store.list("stalls/")]
        hangs = any(rank == "rank00001" and "training_witness.py" in text for rank, text in stacks)
        return hangs and any(rank == "rank00000" and "finish_sum" in text for rank, text in stacks)

    with ThreadPoolExecutor(1) as pool:
        seen = pool.submit(wait_for, explained, "nothing explains why the run stands still")
        seen.add_done_callback(lambda _: (witness_dir / "go-on").touch())
        launch(run, None, lambda event: None)
        seen.result()

    assert command_line(["rerun", "hanging", "--runs", run.runs, "--json"]) == 0
    outcome = json.loads(capsys.readouterr().out)
    assert outcome["same"] and outcome["updates"] == 6 and outcome["loss"] == outcome["loss_again"]
    assert losses_of(run) == losses_of(make_run("hanging-rerun"))


def test_the_same_name_twice_at_once_is_refused(driver, make_run):
    """Two drivers that write one run's checkpoints would destroy them."""
    run = make_run("twice")
    with Lease(run.open_store(), "twice"), pytest.raises(TrainingError, match="'twice' is being trained by another"):
        launch(run, None, lambda event: None)


def test_a_cluster_without_room_says_what_is_missing(driver, make_run):
    """Ray alone would wait for ever."""
    run = make_run("large", workers=2, threads=100, start_timeout=1.0)

    with pytest.raises(ClusterError, match=r"no room for 2 workers with CPU 100 each .*: CPU \d+ free of 4"):
        launch(run, None, lambda event: None)


@pytest.mark.timeout(900)
def test_a_node_that_is_taken_away_leaves_a_checkpoint_before_it_goes(driver, ray_cluster, make_run, witness_dir):
    """Two raylets, and the notice that one of them goes, as a cloud gives it: nothing else asks this run for a checkpoint."""
    raylet = ray_cluster.add_node(3, {"spot": 1})
    run = make_run(
        "preempted",
        threads=3,
        steps=400,
        checkpoint_every={"steps": 10_000},
        evaluate_every=400,
        callbacks=["training_witness:Witness", "training_witness:Slow"],
    )
    noticed_s: list[float] = []
    taker = threading.Thread(target=drain_spot_node, args=(ray_cluster.address, witness_dir, noticed_s))
    taker.start()
    try:
        launch(run, None, lambda event: None)
        taker.join()
    finally:
        os.killpg(raylet, signal.SIGKILL)

    log = read_log(run.open_store())
    saved = [event for event in log.of_kind("saved") if event["step"] < 400]
    assert log.of_kind("started")[0]["workers"] == 2
    assert saved and noticed_s[0] < saved[0]["time"] < noticed_s[0] + GRACE_S
    assert saved[0]["blocked_seconds"] <= saved[0]["seconds"] < GRACE_S


def drain_spot_node(address: str, directory: Path, noticed_s: list[float]) -> None:
    """Tell Ray that the node goes, once the run is under way."""
    wait_for_step(directory, "preempted", 3)
    node = next(node for node in ray.nodes() if node["Alive"] and "spot" in node["Resources"])
    noticed_s.append(time.time())
    preemption = autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
    deadline_ms = int(1000 * (noticed_s[0] + GRACE_S))
    accepted, why = GcsClient(address=address).drain_node(node["NodeID"], preemption, "spot", deadline_ms)
    assert accepted, why


@contextmanager
def driven(run: TrainRun, address: str, environment: dict[str, str]) -> Iterator[None]:
    """A process that launches the run, and is killed at the end of the block."""
    process = multiprocessing.get_context("spawn").Process(target=drive, args=(dump(run), address, environment))
    process.start()
    try:
        yield
        assert process.is_alive()
    finally:
        process.kill()
        process.join()


def drive(run: dict[str, Any], address: str, environment: dict[str, str]) -> None:
    """What that process does."""
    connect(address, environment)
    launch(parse(run, TrainRun), None, lambda event: None)


def hold(run: TrainRun, directory: Path, *steps: int) -> None:
    """Have rank 1 wait behind these updates, once at each."""
    for step in steps:
        hold_file(run, directory, step).touch()


def hold_file(run: TrainRun, directory: Path, step: int) -> Path:
    """As `Held` looks for it, and takes it away when it begins to wait."""
    return directory / f"{run.name}-hold-{step}"


def held(run: TrainRun, directory: Path, step: int) -> list[int]:
    """The processes of both ranks, once rank 1 waits behind that update and the checkpoint before it is committed."""
    store, last, file = run.open_store(), step - step % EVERY, hold_file(run, directory, step)
    wait_for(lambda: not file.exists(), f"{run.name} did not reach step {step}")
    wait_for(lambda: store.exists(f"checkpoints/{last:08d}/manifest.json"), f"{run.name} has no checkpoint of {last}")
    return [wait_for_step(directory, run.name, step, rank) for rank in (0, 1)]


def wait_for_step(directory: Path, name: str, step: int, rank: int = 1) -> int:
    """The process of that rank that made this update, while there is only one."""

    def made() -> list[int]:
        return [line["pid"] for line in witnessed(directory, name, rank) if line["step"] >= step]

    wait_for(lambda: bool(made()), f"{name} did not reach step {step}")
    return made()[0]


def wait_for(condition: Callable[[], bool], otherwise: str) -> None:
    deadline = time.monotonic() + 240
    while not condition():
        assert time.monotonic() < deadline, otherwise
        time.sleep(0.05)


def witnessed(directory: Path, name: str, rank: int) -> list[dict[str, Any]]:
    """All updates that processes of this rank saw, also those that were made again."""
    lines = [line for file in directory.glob(f"{name}-{rank}-*.jsonl") for line in file.read_text().splitlines()]
    return [json.loads(line) for line in lines if line.endswith("}")]


def assert_as_if_undisturbed(
    run: TrainRun, undisturbed: TrainRun, directory: Path, *, resumed_from: list[int | None]
) -> None:
    """Weights, optimizer, losses and sequences are those of the other run, bit for bit, and its attempts began there."""
    assert_each_sequence_once_an_epoch(directory, run.name)
    for rank in (0, 1):
        attempts = {line["pid"]: line["resumed_from"] for line in witnessed(directory, run.name, rank)}
        assert sorted(attempts.values(), key=lambda step: step or 0) == resumed_from
    expected, own = weights_of(undisturbed), weights_of(run)
    assert own.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(value, own[name]), name
    assert losses_of(run) == losses_of(undisturbed)


def assert_each_sequence_once_an_epoch(directory: Path, name: str) -> None:
    """Whoever made an update, and however often: it saw the same sequences."""
    ids_of: dict[int, Counter[int]] = {}
    for rank in (0, 1):
        seen: dict[int, tuple[int, list[int]]] = {}
        for line in witnessed(directory, name, rank):
            assert seen.setdefault(line["step"], (line["epoch"], line["ids"])) == (line["epoch"], line["ids"])
        assert sorted(seen) == list(range(1, STEPS + 1))
        for epoch, ids in seen.values():
            ids_of.setdefault(epoch, Counter()).update(i for i in ids if i >= 0)
    assert ids_of == {epoch: Counter(range(SEQUENCES)) for epoch in range(3)}


def weights_of(run: TrainRun) -> dict[str, torch.Tensor]:
    """Everything that the last checkpoint holds."""
    store = run.open_store().child("checkpoints")
    loaded = Checkpoints(store, SingleRank(), attempt="reader", warn=pytest.fail).load_newest()
    assert loaded is not None and loaded.step == STEPS
    return loaded.tensors


def losses_of(run: TrainRun) -> list[tuple[int, float, float]]:
    """Step, loss and gradient norm, as the run's log has them."""
    store = run.open_store()
    lines = [json.loads(line) for info in store.list("metrics/") for line in store.read(info.key).splitlines()]
    return [(line["step"], line["loss"], line["gradient_norm"]) for line in lines]
