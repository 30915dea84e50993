import json
import math
from typing import Any

import numpy as np
import pytest
import torch

from recurra.data.schema import Column, SequenceSchema
from recurra.data.vocabulary import build_vocabulary
from recurra.errors import RequestError, SchemaError
from recurra.models.config import ModelConfig
from recurra.tasks.build import task_from_dataset, task_from_description
from recurra.tasks.classification import ClassificationConfig, ClassificationTask

from .conftest import Write, one_epoch

WORDS = build_vocabulary("words", ["rain wind sun"])
LABELS = ["wet", "cold", "bright"]
SCHEMA = SequenceSchema((Column("tokens", "uint8"), Column("label", "uint8", axis="sequence", width=3)))
METADATA = {"vocabulary": WORDS.to_json(), "labels": LABELS}


def task_of(**settings: Any) -> ClassificationTask:
    return ClassificationTask(ClassificationConfig(multi_label=True, **settings), LABELS, WORDS, None)


def rows(*flags: list[int]) -> list[dict[str, Any]]:
    return [{"tokens": [3, 4], "label": row} for row in flags]


@pytest.mark.parametrize("batch_sequences", [2, 3])
def test_f1_by_hand_however_the_data_is_cut(write: Write, batch_sequences: int):
    """Truth 110, 010, 000 and guesses 100, 011, 000. Hits 1, 1, 0; guesses 1, 1, 1; truths 1, 2, 0: F1 1, 2/3 and 0, their
    mean 5/9; micro 2 * 2 / (3 + 3); one of three sets is right."""
    task = task_of()
    guesses = {0: [9.0, -9, -9], 1: [-9.0, 9, 9], 2: [-9.0, -9, -9]}
    total = count = 0.0
    sums: dict[str, float] = {}
    dataset = write(SCHEMA, METADATA, rows([1, 1, 0], [0, 1, 0], [0, 0, 0]))
    for batch in one_epoch(dataset, mode="buckets", batch_sequences=batch_sequences):
        outputs = torch.tensor([guesses.get(number, [5.0, 5, 5]) for number in batch.ids.tolist()])
        loss = task.loss(outputs, task.tensors(batch))
        total, count = total + float(loss.total), count + float(loss.count)
        for name, value in loss.sums.items():
            sums[name] = sums.get(name, 0.0) + float(value)
    metrics = task.metrics(total, count, sums)
    assert metrics["micro_f1"] == pytest.approx(2 / 3)
    assert metrics["macro_f1"] == pytest.approx(5 / 9)
    assert (metrics["f1.wet"], metrics["f1.bright"]) == (1.0, 0.0)
    assert metrics["accuracy"] == pytest.approx(1 / 3)
    assert task.objective == ("micro_f1", "max")


def test_no_opinion_costs_the_logarithm_of_two_for_each_decision(write: Write):
    """Nats, mean over labels; smoothing moves the target and not the scale of `nll`."""
    batch = next(one_epoch(write(SCHEMA, METADATA, rows([1, 1, 0], [0, 0, 0])), mode="buckets", batch_sequences=2))
    for smoothing in (0.0, 0.2):
        task = task_of(label_smoothing=smoothing)
        loss = task.loss(torch.zeros(2, 3), task.tensors(batch))
        assert float(loss.total) == pytest.approx(2 * math.log(2))
    sure = task_of(label_smoothing=0.2).loss(torch.full((2, 3), 4.0), task_of().tensors(batch))
    yes, no = math.log(1 + math.exp(-4)), math.log(1 + math.exp(4))
    assert float(sure.sums["nll"]) == pytest.approx((2 * yes + no + 3 * no) / 3, rel=1e-5)
    assert float(sure.total) == pytest.approx((2 * (0.9 * yes + 0.1 * no) + 4 * (0.9 * no + 0.1 * yes)) / 3, rel=1e-5)


def test_the_answer_has_the_labels_above_the_threshold():
    """By hand: logits 0, log 3 and -log 3 are 0.5, 0.75 and 0.25."""
    task = task_of()
    output = np.array([0.0, math.log(3), -math.log(3)], np.float32)
    encoded = task.encode({"text": "rain"})
    answer = task.decode(output, encoded, {})
    assert answer["labels"] == ["cold"]
    assert answer["scores"] == pytest.approx({"cold": 0.75, "wet": 0.5, "bright": 0.25})
    assert task.decode(output, encoded, {"threshold": 0.2})["labels"] == ["cold", "wet", "bright"]
    with pytest.raises(RequestError, match="'threshold' is 2. Send a number from 0 to 1"):
        task.decode(output, encoded, {"threshold": 2})


def test_a_task_rebuilt_from_its_description_is_the_same(write: Write):
    """Serving must decide by sigmoid, too."""
    task = task_from_dataset(ClassificationConfig(multi_label=True), SCHEMA, METADATA)
    again = task_from_description(json.loads(json.dumps(task.describe())))
    output = np.array([3.0, 2.0, -1.0], np.float32)
    assert again.decode(output, again.encode({"text": "sun"}), {})["labels"] == ["wet", "cold"]
    assert again.objective == task.objective
    assert task.build_model(ModelConfig(hidden_size=4)).shape.output_size == 3


def test_samples_name_sets(write: Write):
    """For the report of a run."""
    batch = next(one_epoch(write(SCHEMA, METADATA, rows([1, 1, 0], [0, 0, 0])), mode="buckets", batch_sequences=2))
    found = task_of().samples(torch.tensor([[9.0, -9, -9], [-9, -9, -9]]), task_of().tensors(batch))
    assert [(one["label"], one["guess"]) for one in found] == [("wet, cold", "wet"), ("none", "none")]


def test_a_column_of_one_number_is_refused():
    """A dataset with one label a sequence was meant for the other kind."""
    schema = SequenceSchema((Column("tokens", "uint8"), Column("label", "int32", axis="sequence")))
    with pytest.raises(SchemaError, match="one whole number for each of the 3 labels"):
        task_from_dataset(ClassificationConfig(multi_label=True), schema, METADATA)
