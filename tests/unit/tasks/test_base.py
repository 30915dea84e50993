"""Laws of every task: what one worker measures, two measure together; and what is described is what was trained."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from recurra.data.schema import Column, SequenceSchema
from recurra.data.vocabulary import ByteVocabulary
from recurra.models.sequence import Model
from recurra.tasks.algorithmic import AlgorithmicConfig
from recurra.tasks.build import TASKS, task_from_dataset, task_from_description
from recurra.tasks.classification import ClassificationConfig
from recurra.tasks.forecast_config import ForecastingConfig
from recurra.tasks.language_model import LanguageModelConfig
from recurra.tasks.problems.copying import Copy
from recurra.tasks.regression import RegressionConfig

from .cases import Case
from .conftest import Write, one_epoch
from .series_cases import SERIES_CASES
from .text_cases import TEXT_CASES


def language_model(write: Write) -> Case:
    texts = ["def f():\n", "return 1", "x"]
    rows = [{"tokens": np.concatenate([[0], np.frombuffer(text.encode(), np.uint8)])} for text in texts]
    schema = SequenceSchema((Column("tokens", "uint8"),))
    dataset = write(schema, {"vocabulary": ByteVocabulary().to_json()}, rows)
    return Case(dataset, task_from_dataset(LanguageModelConfig(), schema, dataset.metadata), {"prompt": "de"})


def classification(write: Write) -> Case:
    rows = [{"tokens": [1 + n] * (1 + n), "label": n % 2} for n in range(3)]
    schema = SequenceSchema((Column("tokens", "uint8"), Column("label", "int32", axis="sequence")))
    dataset = write(schema, {"vocabulary": ByteVocabulary().to_json(), "labels": ["a", "b"]}, rows)
    config = ClassificationConfig(label_smoothing=0.1)
    return Case(dataset, task_from_dataset(config, schema, dataset.metadata), {"text": "a"})


def regression(write: Write) -> Case:
    rows = [{"values": np.full((1 + n, 2), 0.5), "target": 0.5 * n} for n in range(3)]
    schema = SequenceSchema((Column("values", "float32", width=2), Column("target", "float32", axis="sequence")))
    dataset = write(schema, {}, rows)
    task = task_from_dataset(RegressionConfig(), schema, dataset.metadata)
    return Case(dataset, task, {"values": [[0.5, 1.0], [0.25, 0.0]]})


def forecasting(write: Write) -> Case:
    rows = [{"values": 5 + np.arange(8 + n) % 3, "start": "2000-01", "holdout": 3 * (n % 2)} for n in range(3)]
    schema = SequenceSchema(
        (
            Column("values", "float32"),
            Column("start", "string", axis="sequence"),
            Column("holdout", "int32", axis="sequence"),
        )
    )
    dataset = write(schema, {"frequency": "month"}, rows)
    task = task_from_dataset(ForecastingConfig(horizon=3, season=2), schema, dataset.metadata)
    return Case(dataset, task, {"series": [5, 6, 7, 5], "start_timestamp": "2000-01-01"})


def algorithmic(write: Write) -> Case:
    copy = Copy(width=3)
    dataset = write(copy.schema, {"problem": copy.describe()}, copy.examples(3, [(1, 4)], seed=0))
    return Case(
        dataset, task_from_dataset(AlgorithmicConfig(), dataset.schema, dataset.metadata), {"bits": [[0, 1, 1]]}
    )


CASES: dict[str, Callable[[Write], Case]] = {
    "language_model": language_model,
    "classification": classification,
    "regression": regression,
    "forecasting": forecasting,
    "algorithmic": algorithmic,
    **SERIES_CASES,
    **TEXT_CASES,
}


def model_of(case: Case) -> Model:
    """A model whose outputs are not all alike."""
    torch.manual_seed(0)
    model = case.task.build_model(case.model).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.5)
    return model


def test_every_task_stands_here():
    """A new task is held to these laws from its first day."""
    assert set(CASES) == set(TASKS)


@pytest.mark.parametrize("kind", CASES)
def test_two_workers_measure_together_what_one_measures(write: Write, kind: str):
    """Loss, count and every sum add up over ranks, though the second rank has nothing but filler in the last batch."""
    case = CASES[kind](write)
    model = model_of(case)

    found = []
    for world_size in (1, 2):
        sums: dict[str, float] = {}
        for rank in range(world_size):
            batches = one_epoch(case.dataset, mode="buckets", batch_sequences=2, rank=rank, world_size=world_size)
            for batch in batches:
                tensors = case.task.tensors(batch)
                with torch.no_grad():
                    outputs, _ = case.task.forward(model, tensors, None)
                    measured = case.task.measure(model, tensors, want_samples=False)
                loss = case.task.loss(outputs, tensors)
                for name, value in {"": loss.total, "#": loss.count, **loss.sums, **measured.sums}.items():
                    sums[name] = sums.get(name, 0.0) + float(value)
        total, count = sums.pop(""), sums.pop("#")
        found.append(case.task.metrics(total, count, sums))
    assert found[0] == pytest.approx(found[1], rel=1e-5)
    assert case.task.objective[0] in found[0]
    assert "loss" in found[0]


@pytest.mark.parametrize("kind", CASES)
def test_the_loss_has_a_gradient_that_lowers_it(write: Write, kind: str):
    """A few small steps downhill on one batch: a sign or a mask that is wrong shows here."""
    case = CASES[kind](write)
    tensors = case.task.tensors(next(one_epoch(case.dataset, mode="buckets", batch_sequences=3)))
    model = model_of(case)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)

    losses = []
    for _ in range(8):
        outputs, _ = case.task.forward(model, tensors, None)
        loss = case.task.loss(outputs, tensors)
        losses.append(float(loss.total.detach()))
        optimizer.zero_grad()
        (loss.total / loss.count).backward()
        optimizer.step()
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("kind", CASES)
def test_a_described_task_is_served_as_it_was_trained(write: Write, kind: str):
    """Same inputs, same model, same answer from the description as from the dataset."""
    case = CASES[kind](write)
    rebuilt = task_from_description(case.task.describe())
    model = model_of(case)

    answers = []
    for task in (case.task, rebuilt):
        encoded = task.encode(case.instance)
        outputs, _ = model(torch.from_numpy(encoded.inputs)[None])
        answers.append(task.decode(outputs[0].detach().numpy(), encoded, case.options))
    assert answers[0] == answers[1]
    assert rebuilt.describe() == case.task.describe()


@pytest.mark.parametrize("kind", CASES)
def test_the_request_schema_takes_the_example_and_nothing_else(write: Write, kind: str):
    """OpenAPI shows it: what it allows must be what `encode` takes."""
    schema = CASES[kind](write).task.request_schema()

    assert schema["type"] == "object"
    assert schema["additionalProperties"] is False
    assert set(CASES[kind](write).instance) <= set(schema["properties"])


def test_a_batch_moves_to_the_models_device_but_for_its_lengths(write: Write):
    """Lengths are read on the CPU at every step: on a GPU each read would wait for all that it computes."""
    case = CASES["language_model"](write)
    tensors = case.task.tensors(next(one_epoch(case.dataset, mode="lanes", batch_sequences=2, window=4, lookahead=1)))

    moved = tensors.to("meta")

    assert moved.reset is not None
    assert {value.device.type for value in (moved.inputs, moved.reset, *moved.targets.values())} == {"meta"}
    assert moved.lengths.device.type == "cpu"
    assert {name: value.shape for name, value in moved.targets.items()} == {
        name: value.shape for name, value in tensors.targets.items()
    }
    assert tensors.to("cpu") is tensors


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("kind", CASES)
def test_what_was_copied_to_a_gpu_is_what_was_there(write: Write, kind: str):
    """Copies run beside the computation: one that came too late would train on the batch before."""
    case = CASES[kind](write)
    for batch in one_epoch(case.dataset, mode="buckets", batch_sequences=2):
        tensors = case.task.tensors(batch)
        moved = tensors.to("cuda")
        assert torch.equal(moved.inputs.cpu(), tensors.inputs)
        assert all(torch.equal(moved.targets[name].cpu(), value) for name, value in tensors.targets.items())
