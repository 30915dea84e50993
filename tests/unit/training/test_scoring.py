"""A published model on a dataset, with intervals."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from recurra.data.dataset import Dataset
from recurra.data.schema import Column, SequenceSchema
from recurra.data.vocabulary import WordVocabulary
from recurra.data.write import DatasetWriter
from recurra.errors import ConfigError, SchemaError
from recurra.registry.loading import LoadedModel, load_model
from recurra.registry.registry import Registry
from recurra.training import scoring
from recurra.training.scoring import Resampling, score
from recurra.training.work import train_here

from .conftest import MakeRun


@pytest.fixture
def trained(make_run: MakeRun, tmp_path: Path) -> tuple[LoadedModel, dict[str, float]]:
    """A published model, and what its run said of it."""
    url = f"file://{tmp_path}/registry"
    run = make_run(publish={"model": "m", "registry": url})
    metrics = train_here(run).metrics
    return load_model(Registry(url), "m"), metrics


def test_metrics_are_those_of_the_run(trained, datasets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another batch size, each sequence summed for itself: the same numbers. (Lanes cut some sequences: not those.)"""
    loaded, metrics = trained
    monkeypatch.setattr(scoring, "BATCH_TOKENS", 90)
    found = score(loaded, Dataset.open(f"file://{datasets}/text-eval"))

    assert {name: one.value for name, one in found.metrics.items()} == pytest.approx(metrics, rel=1e-5)
    assert found.sequences == 20 and found.tokens > 100 and len(found.digest) == 64


def test_intervals_hold_the_value_and_shrink_with_the_data(trained, datasets: Path) -> None:
    """A difference of half a point on 20 sequences says nothing: the interval shows it."""
    loaded, _ = trained
    few = score(loaded, Dataset.open(f"file://{datasets}/text-eval")).metrics["bits_per_token"]
    many = score(loaded, Dataset.open(f"file://{datasets}/text")).metrics["bits_per_token"]

    assert few.low < few.value < few.high and many.low < many.value < many.high
    assert many.high - many.low < few.high - few.low


def test_an_interval_covers_the_truth_as_often_as_it_says() -> None:
    """Of 95 % intervals for a mean of known distribution about 95 % hold it."""

    class Mean:
        def metrics(self, total, count, sums):
            return {"mean": total / count}

    generator, hits = np.random.default_rng(5), 0
    for seed in range(200):
        sums = np.stack([np.ones(60), generator.exponential(2.0, 60)], 1)
        metric = scoring._metrics(Mean(), ["#", ""], sums, Resampling(400, 0.95, seed))["mean"]  # type: ignore[arg-type]
        hits += metric.low <= 2.0 <= metric.high
    assert 0.88 <= hits / 200 <= 0.99


def test_intervals_are_the_same_again_and_may_be_left_out(trained, datasets: Path) -> None:
    """A report that is made again says the same."""
    loaded, _ = trained
    dataset = Dataset.open(f"file://{datasets}/text-eval")

    assert score(loaded, dataset) == score(loaded, dataset)
    assert score(loaded, dataset, Resampling(samples=0)).metrics["loss"].low is None


def test_data_that_means_something_else_is_refused(trained, datasets: Path, tmp_path: Path) -> None:
    """Token 17 of another vocabulary is another word: every metric would be nonsense."""
    loaded, _ = trained
    vocabulary = WordVocabulary(["a", "b"]).to_json()
    schema = SequenceSchema((Column("tokens", "uint16"),))
    with DatasetWriter(f"file://{tmp_path}/other", schema, {"vocabulary": vocabulary}) as writer:
        writer.write({"tokens": np.zeros(3, np.uint16)})

    with pytest.raises(SchemaError, match=r"another vocabulary than the model .*recurra data write --like"):
        score(loaded, Dataset.open(f"file://{tmp_path}/other"))
    with pytest.raises(SchemaError, match="tokens"):
        score(loaded, Dataset.open(f"file://{datasets}/copy"))
    dataset = Dataset.open(f"file://{datasets}/text-eval")
    with pytest.raises(ConfigError, match=r"confidence is 95. Give a share between 0 and 1"):
        score(loaded, dataset, Resampling(confidence=95.0))
    with pytest.raises(ConfigError, match="-1 samples"):
        score(loaded, dataset, Resampling(samples=-1))
