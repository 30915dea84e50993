"""The figures of 8-bit steps in a bundle's card are those of the model that is published."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from recurra.models.native.library import available
from recurra.registry.loading import load_model
from recurra.registry.registry import Registry
from recurra.training.evaluation import evaluate
from recurra.training.ranks import SingleRank
from recurra.training.run import Origin
from recurra.training.work import train_here

from .conftest import MakeRun


@pytest.mark.parametrize("train", [{}, {"truncated_bptt": 9, "global_batch": {"sequences": 4}}])
def test_the_card_says_what_8_bits_lose_and_gain(make_run: MakeRun, tmp_path: Path, train: dict[str, object]) -> None:
    """Single steps in float32 give the metrics of the evaluation; 8-bit ones nearly those, in less time."""
    if not available(torch.device("cpu"), torch.float32):
        pytest.skip("8-bit steps need the native kernels, hence a C++ compiler")
    registry = f"file://{tmp_path}/registry"
    publish = {"model": "small", "registry": registry, "int8": True}
    run = make_run(train={**train, "learning_rate": 0.02}, model={"cell": "lstm", "hidden_size": 160}, publish=publish)
    train_here(run)
    loaded = load_model(Registry(registry), "small")
    card = loaded.bundle.card["int8"]

    if not train:  # windows of a stream begin with an empty state here, and a carried one there
        trainer = run.build(SingleRank(), Origin("a", "cpu", None, None, pytest.fail))
        batches = trainer.evaluation()
        wanted = evaluate(loaded.task, loaded.model, batches, SingleRank()).metrics
        batches.close()
        trainer.close()
        assert card["float32"]["metrics"] == pytest.approx(wanted, rel=1e-5)
    exact, rounded = (card[precision]["metrics"]["bits_per_token"] for precision in ("float32", "int8"))
    assert rounded != exact and rounded == pytest.approx(exact, rel=0.02)
    assert card["steps"] > 300 and card["speedup"] == pytest.approx(
        card["float32"]["step_us"] / card["int8"]["step_us"], abs=0.01
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": {"cell": "ntm"}}, "publish.int8 is true, but model.cell is ntm"),
        ({"data": {"train": "file:///tmp/none"}}, "publish.int8 is true, but there is no data.eval"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_the_run(
    make_run: MakeRun, change: dict[str, object], message: str
) -> None:
    """At its end it would be too late."""
    with pytest.raises(ValidationError, match=message):
        make_run(publish={"model": "small", "int8": True}, **change)
