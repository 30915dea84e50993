"""Fully sharded training by two real processes over gloo: it learns what two whole replicas learn, in half the memory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from recurra.config.load import dump
from recurra.training.run import TrainRun

from ...rendezvous import start_ranks
from .conftest import MakeRun
from .test_loop import LANES, assert_same, final_checkpoint, steps_logged, train_until

CASES: dict[str, dict[str, Any]] = {
    "buckets": {
        "train": {"accumulate": 2, "ema": 0.9, "schedule": {"kind": "cosine", "warmup": 3}},
        "model": {
            "cell": "lstm",
            "layers": 2,
            "hidden_size": 12,
            "embedding_size": 12,
            "tied_embeddings": True,
            "regularisation": {"dropout": 0.3, "variational": True, "weight_drop": 0.2, "l1": 1e-4, "l2": 1e-2},
        },
    },
    "lanes": {
        "train": {**LANES, "accumulate": 2, "optimizer": "sgd", "gradient_clip": {"norm": 0.5, "value": 0.1}},
        "model": {"cell": "gru"},
    },
    "filler": {
        "train": {"global_batch": {"sequences": 1}, "accumulate": 3, "optimizer": "rmsprop"},
        "model": {"cell": "ntm", "ntm": {"memory_rows": 8, "memory_width": 4}},
    },
}
KILLED = ("buckets", "lanes")
STEPS, KILLED_AT = 6, 4


class Trained:
    """The runs of all cases, and what each rank held."""

    def __init__(self, runs: dict[str, TrainRun], held: list[list[dict[str, float]]]) -> None:
        self.runs = runs
        self.held = dict(zip(runs, zip(*held, strict=True), strict=True))


@pytest.fixture(scope="module")
def trained(datasets: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Of each case one run with whole replicas, one sharded, and one sharded that is killed twice and goes on."""
    folder = tmp_path_factory.mktemp("sharding")
    runs: dict[str, TrainRun] = {}
    jobs: list[tuple[Any, int | None]] = []
    for case, settings in CASES.items():
        for kind in ("ddp", "fsdp", *(("ddp-killed", "killed", "left") if case in KILLED else ())):
            train = {
                "steps": STEPS,
                "checkpoint_every": {"steps": 3},
                "evaluate_every": STEPS,
                "global_batch": {"sequences": 5},
            }
            train |= {**settings["train"], "parallel": "ddp" if kind.startswith("ddp") else "fsdp"}
            data = {"train": f"file://{datasets}/text"}
            if case == "buckets":
                data["eval"] = f"file://{datasets}/text-eval"
            run = TrainRun.model_validate(
                {
                    "name": f"{case}-{kind}",
                    "task": "language_model",
                    "data": data,
                    "model": {"hidden_size": 12, "embedding_size": 6, **settings["model"]},
                    "train": train,
                    "runs": f"file://{folder}/runs",
                }
            )
            runs[run.name] = run
            jobs.append((dump(run), KILLED_AT if kind in ("ddp-killed", "killed", "left") else None))
    again = [(dump(run), None) for name, run in runs.items() if name.endswith("-killed")]
    processes = start_ranks(
        2, [str(Path(__file__).with_name("on_processes.py"))], folder / "place", json.dumps([*jobs, *again])
    )
    said = [process.communicate(timeout=600)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    return Trained(runs, [json.loads(text.splitlines()[-1])[: len(jobs)] for text in said])


@pytest.mark.parametrize("case", CASES)
def test_a_sharded_run_learns_what_replicas_learn(trained: Trained, case: str) -> None:
    """Gathering and scattering change where numbers lie, and no loss."""
    replicas, sharded = trained.runs[f"{case}-ddp"], trained.runs[f"{case}-fsdp"]
    losses = [[record["loss"] for record in steps_logged(run)] for run in (replicas, sharded)]

    assert len(losses[0]) == STEPS and losses[1] == pytest.approx(losses[0], rel=1e-6)
    whole, put_together = final_checkpoint(replicas).tensors, final_checkpoint(sharded).tensors
    assert put_together.keys() == whole.keys()
    for name, value in whole.items():
        torch.testing.assert_close(put_together[name], value, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("case", KILLED)
@pytest.mark.parametrize(("whole", "cut"), [("fsdp", "killed"), ("ddp", "ddp-killed")])
def test_a_run_of_two_that_is_killed_goes_on_exactly(trained: Trained, case: str, whole: str, cut: str) -> None:
    """Each rank's rows are the same rows again, bit for bit, with moments, average and states; and replicas send their
    gradients in the same buckets as before."""
    undisturbed, killed = trained.runs[f"{case}-{whole}"], trained.runs[f"{case}-{cut}"]

    assert_same(final_checkpoint(undisturbed), final_checkpoint(killed))
    assert steps_logged(undisturbed) == steps_logged(killed)


@pytest.mark.parametrize("case", KILLED)
def test_a_sharded_run_goes_on_at_another_size(trained: Trained, case: str) -> None:
    """Two ranks wrote the checkpoint; one takes it over, and learns what two would have."""
    undisturbed, left = trained.runs[f"{case}-fsdp"], trained.runs[f"{case}-left"]
    train_until(left, None)

    losses = [[record["loss"] for record in steps_logged(run)] for run in (undisturbed, left)]
    without_dropout = case != "buckets"  # whose masks are each rank's own
    assert len(losses[1]) == STEPS and losses[1] == pytest.approx(losses[0], rel=1e-5 if without_dropout else 0.1)


def test_each_rank_holds_half(trained: Trained) -> None:
    """That is what it is for: weights, gradients and moments, as they lie between two updates."""
    whole, sharded = trained.held["buckets-ddp"], trained.held["buckets-fsdp"]

    for part in ("weights", "gradients", "optimizer", "storage"):
        assert whole[0][part] == whole[1][part]
        assert all(rank[part] < 0.51 * whole[0][part] for rank in sharded), part
        assert sum(rank[part] for rank in sharded) == pytest.approx(whole[0][part], rel=0.01), part


def test_embedding_and_output_layer_are_whole_in_turn(trained: Trained) -> None:
    """Of a large vocabulary they are nearly all of the model; neither is gathered while the other one computes."""
    for rank in trained.held["lanes-fsdp"]:
        assert rank["embedding_beside_head"] == pytest.approx(0.5, abs=0.01)


def test_what_sharding_cannot_do_is_refused(make_run: MakeRun) -> None:
    """A unit's norm would be that of the rows that happen to be here."""
    with pytest.raises(ValidationError, match=r"gradient_clip.adaptive is 0.01 with train.parallel = fsdp"):
        make_run(train={"parallel": "fsdp", "gradient_clip": {"adaptive": 0.01}})
