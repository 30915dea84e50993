"""What would stop a run is said in a line each, before a worker is paid for."""

from __future__ import annotations

import pytest

from recurra.data.schema import Column, SequenceSchema
from recurra.data.vocabulary import ByteVocabulary, CharacterVocabulary, Vocabulary
from recurra.data.write import DatasetWriter
from recurra.orchestration.job_file import JobFile
from recurra.orchestration.plan import Resources, make_plan
from recurra.training.lease import Lease
from recurra.training.work import train_here


def write(url: str, vocabulary: Vocabulary) -> None:
    schema = SequenceSchema((Column("tokens", vocabulary.dtype),))
    with DatasetWriter(url, schema, {"vocabulary": vocabulary.to_json()}) as writer:
        for number in range(12):
            writer.write({"tokens": vocabulary.encode(f"line {number}")})


@pytest.fixture
def base(local_url: str) -> str:
    """A dataset of lines under `text`."""
    write(f"{local_url}/text", ByteVocabulary())
    return local_url


def job(base: str, **changes: object) -> JobFile:
    train = {"steps": 4, "global_batch": {"sequences": 4}, **(changes.pop("train", {}))}  # type: ignore[dict-item]
    model = {"hidden_size": 8, **(changes.pop("model", {}))}  # type: ignore[dict-item]
    data = {"train": f"{base}/text", **(changes.pop("data", {}))}  # type: ignore[dict-item]
    values = {"name": "lines", "task": "language_model", "data": data, "model": model, "train": train}
    return JobFile.model_validate({**values, "runs": f"{base}/runs", **changes})


@pytest.mark.parametrize("cell", ["rnn", "gru", "lstm", "minlstm", "mingru", "ntm"])
def test_every_cell_has_an_estimate(base: str, cell: str) -> None:
    """A plan that falls over a cell is worse than none."""
    plan = make_plan(job(base, model={"cell": cell}), None)
    assert plan.problems == [] and plan.facts["train"]["memory_per_worker"] > 0
    assert plan.facts["run"] == {"name": "lines", "begins": "from the beginning"}


@pytest.mark.parametrize(
    "train",
    [
        pytest.param({"global_batch": {"tokens": 16}}, id="buckets of different sizes"),
        pytest.param({"truncated_bptt": 4, "global_batch": {"sequences": 3}}, id="lanes"),
        pytest.param(
            {"truncated_bptt": 6, "window_schedule": {"start": 2, "batches": 3}, "global_batch": {"sequences": 2}},
            id="windows that grow",
        ),
    ],
)
def test_a_plan_knows_the_updates_that_a_run_makes(base: str, train: dict[str, object]) -> None:
    """To the last one."""
    planned = job(base, train={"steps": None, "epochs": 3, **train})
    facts = make_plan(planned, None).facts["train"]

    assert train_here(planned.train_run()).steps == facts["updates"]
    assert facts["updates"] // 3 <= facts["updates_per_epoch"] + 1


def test_memory_is_that_of_all_workers(base: str) -> None:
    """Each fits alone; together they do not."""
    resources = Resources({"CPU": 8.0, "memory": 400.0 * 2**20}, {})
    assert make_plan(job(base, train={"workers": 2}), resources).problems == []
    (problem,) = make_plan(job(base, train={"workers": 4}), resources).problems
    assert "4 workers need about 0.5 GiB, the cluster has 0.4 GiB. Lower train.global_batch" in problem


def test_workers_that_the_cluster_has_no_room_for_are_a_problem(base: str) -> None:
    """CPUs and GPUs each, with how many there would be room for."""
    resources = Resources({"CPU": 6.0, "GPU": 1.0}, {"CPU": 6.0, "GPU": 1.0})
    cpus, gpus = make_plan(job(base, train={"workers": 4, "threads": 2, "gpu": True}), resources).problems
    assert cpus == (
        "train.workers = 4 needs 8 CPUs, the cluster has 6. Lower train.threads, set train.workers to 3, or add nodes."
    )
    assert "needs 4 GPUs, the cluster has 1. Set train.gpu to auto or false, set train.workers to 1, or add" in gpus


def test_a_dataset_that_is_missing_is_a_problem(base: str) -> None:
    """Named with its address; what can be said without it is said."""
    (problem,) = make_plan(job(base, data={"train": f"{base}/nowhere"}), None).problems
    assert f"{base}/nowhere" in problem


def test_datasets_of_a_curriculum_are_looked_at(base: str) -> None:
    """Also without evaluation data: one that is missing or of another vocabulary is found before the run starts."""
    data = {"curriculum": {"easier": [f"{base}/easy"], "below": 0.1}}
    (missing,) = make_plan(job(base, data=data), None).problems
    write(f"{base}/easy", CharacterVocabulary(list("abcdefgilno 0123456789")))
    other = make_plan(job(base, data=data), None)

    assert f"{base}/easy" in missing
    assert "was written with another vocabulary than" in other.problems[0]
    assert other.facts["data"]["curriculum"][0]["url"] == f"{base}/easy"


def test_shards_take_less_memory_than_replicas(base: str) -> None:
    """A large model on four workers: two whole copies during an update, and a quarter of everything else."""
    held = {
        kind: make_plan(
            job(
                base,
                model={"hidden_size": 512},
                train={"workers": 4, "parallel": kind},
                data={"prefetch_bytes": 1 << 20},
            ),
            None,
        ).facts
        for kind in ("ddp", "fsdp")
    }
    saved = held["ddp"]["train"]["memory_per_worker"] - held["fsdp"]["train"]["memory_per_worker"]
    assert saved == held["ddp"]["model"]["weight_bytes"] * (4 - (2 + 4 / 4))


def test_evaluation_data_of_another_vocabulary_is_a_problem(base: str) -> None:
    """Found when the run starts, otherwise: when the cluster is there and is paid for."""
    write(f"{base}/other", CharacterVocabulary(list("abcdefgilno 0123456789")))
    (problem,) = make_plan(job(base, data={"eval": f"{base}/other"}), None).problems
    assert "was written with another vocabulary than" in problem


def test_a_name_that_was_used_says_what_it_goes_on_from(base: str) -> None:
    """Finished, changed since, or being trained at this moment."""
    run = job(base).train_run()
    train_here(run)
    assert "all its steps are done" in make_plan(job(base), None).facts["run"]["begins"]
    longer = make_plan(job(base, train={"steps": 9}), None)
    assert longer.problems == [] and longer.facts["run"]["begins"] == "from its last checkpoint"

    (changed,) = make_plan(job(base, model={"hidden_size": 16}), None).problems
    assert "Run 'lines' was started with model = " in changed and "give this run another name" in changed
    with Lease(run.open_store(), "lines"):
        (running,) = make_plan(job(base), None).problems
    assert "is being trained now. Follow it: recurra runs watch lines" in running
