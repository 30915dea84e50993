import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from recurra.data.schema import Column, SequenceSchema
from recurra.data.vocabulary import WordVocabulary, build_vocabulary
from recurra.errors import ConfigError, RequestError, SchemaError
from recurra.models.config import ModelConfig
from recurra.tasks.build import task_from_dataset, task_from_description
from recurra.tasks.classification import ClassificationConfig, ClassificationTask

from .conftest import Write, one_epoch

WORDS = build_vocabulary("words", ["a warm and funny film", "a dull film"])
LABELS = ["bad", "fine", "good"]
TOKENS = SequenceSchema((Column("tokens", "uint8"), Column("label", "int32", axis="sequence")))
FEATURES = SequenceSchema((Column("frames", "float32", width=2), Column("label", "int32", axis="sequence")))
METADATA = {"vocabulary": WORDS.to_json(), "labels": LABELS}


def task_of(config: ClassificationConfig | None = None) -> ClassificationTask:
    return ClassificationTask(config or ClassificationConfig(), LABELS, WORDS, None)


def rows(*labels: int) -> list[dict[str, Any]]:
    return [{"tokens": [3, 4, 5][: 1 + index % 3], "label": label} for index, label in enumerate(labels)]


def metrics_of(
    task: ClassificationTask, dataset: Any, guesses: dict[int, int], batch_sequences: int
) -> dict[str, float]:
    """Metrics where the sequence with id i is guessed as `guesses[i]` with certainty, summed over batches."""
    total = count = 0.0
    sums: dict[str, float] = {}
    for batch in one_epoch(dataset, mode="buckets", batch_sequences=batch_sequences):
        outputs = torch.zeros(len(batch.ids), len(LABELS))
        for index, number in enumerate(batch.ids.tolist()):
            outputs[index, guesses.get(number, 0)] = 50
        loss = task.loss(outputs, task.tensors(batch))
        total, count = total + float(loss.total), count + float(loss.count)
        for name, value in loss.sums.items():
            sums[name] = sums.get(name, 0.0) + float(value)
    return task.metrics(total, count, sums)


@pytest.mark.parametrize("batch_sequences", [2, 3, 5])
def test_accuracy_and_macro_f1_by_hand_however_the_data_is_cut(write: Write, batch_sequences):
    """Truth 0 0 1 2 2 and guesses 0 1 1 2 0: accuracy 3/5, F1 of the labels 1/2, 2/3, 2/3. A mean of the batches' F1
    would differ with the size of batches; filler rows would count as label 0."""
    dataset = write(TOKENS, METADATA, rows(0, 0, 1, 2, 2))

    metrics = metrics_of(task_of(), dataset, {0: 0, 1: 1, 2: 1, 3: 2, 4: 0}, batch_sequences)
    assert metrics["accuracy"] == pytest.approx(0.6)
    assert metrics["macro_f1"] == pytest.approx((1 / 2 + 2 / 3 + 2 / 3) / 3)
    assert metrics["sequences"] == 5


def test_a_uniform_model_costs_the_logarithm_of_the_number_of_labels(write: Write):
    """The scale of the loss, in nats."""
    task = task_of()
    batch = next(one_epoch(write(TOKENS, METADATA, rows(0, 1, 2)), mode="buckets", batch_sequences=3))
    loss = task.loss(torch.zeros(3, 3), task.tensors(batch))

    assert float(loss.total) == pytest.approx(3 * math.log(3))
    assert float(loss.count) == 3


def test_label_smoothing_is_torchs(write: Write):
    """The same numbers as torch.nn.functional.cross_entropy; `nll` is without smoothing."""
    task = task_of(ClassificationConfig(label_smoothing=0.2))
    batch = next(one_epoch(write(TOKENS, METADATA, rows(0, 1, 2)), mode="buckets", batch_sequences=3))
    tensors = task.tensors(batch)
    outputs = torch.randn(3, 3, generator=torch.Generator().manual_seed(0))
    label = tensors.targets["label"]

    loss = task.loss(outputs, tensors)
    reference = torch.nn.functional.cross_entropy
    assert float(loss.total) == pytest.approx(float(reference(outputs, label, label_smoothing=0.2, reduction="sum")))
    assert float(loss.sums["nll"]) == pytest.approx(float(reference(outputs, label, reduction="sum")))


def test_a_sequences_weight_counts(write: Write):
    """A column `weight` makes rare classes heavier; accuracy and loss are both weighted."""
    schema = SequenceSchema((*TOKENS.columns, Column("weight", "float32", axis="sequence")))
    examples = [{**row, "weight": weight} for row, weight in zip(rows(0, 1), [3.0, 1.0], strict=True)]

    metrics = metrics_of(task_of(), write(schema, METADATA, examples), {0: 0, 1: 0}, 2)
    assert metrics["accuracy"] == pytest.approx(0.75)


def test_the_answer_has_a_probability_for_each_label():
    """By hand: logits log 1, log 2, log 5."""
    task = task_of()
    output = np.log(np.array([1, 2, 5], np.float32))

    answer = task.decode(output, task.encode({"text": "funny"}), {})
    assert answer["label"] == "good"
    assert answer["score"] == pytest.approx(5 / 8)
    assert answer["scores"] == pytest.approx({"good": 5 / 8, "fine": 2 / 8, "bad": 1 / 8})
    assert list(task.decode(output, task.encode({"text": "funny"}), {"top": 1})["scores"]) == ["good"]
    with pytest.raises(RequestError, match="'top' is 4. Send a whole number from 1 to 3"):
        task.decode(output, task.encode({"text": "funny"}), {"top": 4})


def test_an_unknown_word_becomes_unk():
    """People write words that training has not seen; that is no error."""
    unk = WordVocabulary.unk
    film = int(WORDS.encode("film")[0])

    assert task_of().encode({"text": "unheard Film"}).inputs.tolist() == [unk, film]


@pytest.mark.parametrize(
    ("instance", "message"),
    [
        ({"text": "  "}, "'text' is '  ', which has no step. Send {\"text\""),
        ({"tokens": []}, r"'tokens' is '\[\]', which has no step"),
        ({"tokens": [99]}, "holds 99 at index 0, and the model knows tokens 0 to 8"),
        ({"text": 3}, "'text' is a number. Send a string"),
        ({"txt": "a"}, "'txt' is not a field. Did you mean 'text'"),
        ({"text": "a", "tokens": [3]}, "has text and tokens. Send one of them"),
        ({}, "has no text or tokens"),
        (["a"], "The instance is a list. Send an object such as"),
    ],
)
def test_a_wrong_instance_is_told_what_to_send(instance, message):
    """A client sees nothing but this message."""
    with pytest.raises(RequestError, match=message) as caught:
        task_of().encode(instance)
    assert caught.value.status == 422


def test_features_are_classified_like_tokens(write: Write):
    """Sensor frames, audio, skeletons: the job file differs in the name of the column alone."""
    examples = [{"frames": [[0.5, 1.0]] * 3, "label": 1}, {"frames": [[2.0, 3.0]], "label": 0}]
    dataset = write(FEATURES, {"labels": LABELS}, examples)
    task = task_from_dataset(ClassificationConfig(column="frames"), dataset.schema, dataset.metadata)
    model = task.build_model(ModelConfig(hidden_size=4, pooling="mean"))

    tensors = task.tensors(next(one_epoch(dataset, mode="buckets", batch_sequences=2)))
    outputs, _ = model(tensors.inputs, None, tensors.lengths)
    assert float(task.loss(outputs, tensors).count) == 2
    assert task.encode({"values": [[0.5, 1]]}).inputs.tolist() == [[0.5, 1.0]]
    with pytest.raises(RequestError, match="'values' holds a list of 1 at index 1. Send 2 numbers for each step"):
        task.encode({"values": [[1, 2], [3]]})
    with pytest.raises(RequestError, match="'values' holds nan at index 0"):
        task.encode({"values": [[1, float("nan")]]})


@given(st.text(max_size=40), st.sampled_from([0.0, 0.1]))
def test_a_described_task_answers_as_the_one_that_was_trained(text, smoothing):
    """Serving has the description alone, after a way through JSON."""
    task = task_of(ClassificationConfig(label_smoothing=smoothing))
    rebuilt = task_from_description(json.loads(json.dumps(task.describe())))
    output = np.random.default_rng(0).normal(size=3).astype(np.float32)

    encoded, again = task.encode({"text": f"a {text}"}), rebuilt.encode({"text": f"a {text}"})
    assert again.inputs.tolist() == encoded.inputs.tolist()
    assert rebuilt.decode(output, again, {}) == task.decode(output, encoded, {})
    assert rebuilt.describe() == task.describe()
    assert rebuilt.request_schema() == task.request_schema()


def test_windows_are_refused(write: Write):
    """A label belongs to a whole sequence."""
    schema = SequenceSchema((Column("tokens", "uint8"),))
    dataset = write(schema, {"vocabulary": WORDS.to_json()}, [{"tokens": [3, 4, 5, 6]}])
    batch = next(one_epoch(dataset, mode="lanes", batch_sequences=1, window=2))
    with pytest.raises(ConfigError, match="Remove train.truncated_bptt"):
        task_of().tensors(batch)


@pytest.mark.parametrize(
    ("schema", "metadata", "message"),
    [
        (SequenceSchema(TOKENS.columns[:1]), METADATA, "has no column 'label'"),
        (TOKENS, {"vocabulary": WORDS.to_json()}, "metadata has no 'labels'"),
        (TOKENS, {**METADATA, "labels": ["good"]}, r"labels are \['good'\]. Give at least two different names"),
        (TOKENS, {"labels": LABELS}, "metadata has no 'vocabulary'"),
        (
            SequenceSchema((Column("tokens", "float32"), Column("label", "int32", axis="sequence"))),
            METADATA,
            r"Column 'tokens' is float32 \[T\], and the task needs token ids",
        ),
        (
            SequenceSchema((Column("tokens", "uint8"), Column("label", "float32", axis="sequence"))),
            METADATA,
            "Column 'label' is float32, one a sequence, and the task needs one whole number",
        ),
    ],
)
def test_a_dataset_that_does_not_fit_says_how_to_write_it(schema, metadata, message):
    """It is found before the run starts."""
    with pytest.raises(SchemaError, match=message):
        task_from_dataset(ClassificationConfig(), schema, metadata)


def test_samples_show_truth_guess_and_text(write: Write):
    """The report shows what the numbers mean."""
    task = task_of()
    batch = next(one_epoch(write(TOKENS, METADATA, rows(2)), mode="buckets", batch_sequences=1))

    (sample,) = task.samples(torch.tensor([[0.0, 0.0, 50.0]]), task.tensors(batch))
    assert (sample["label"], sample["guess"]) == ("good", "good")
    assert sample["score"] == pytest.approx(1)
    assert sample["text"] == WORDS.decode([3])
