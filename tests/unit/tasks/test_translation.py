import json
import math
from typing import Any

import pytest
import torch

from recurra.data.schema import Column, SequenceSchema
from recurra.data.vocabulary import build_vocabulary
from recurra.errors import ConfigError, RequestError, SchemaError
from recurra.models.config import ModelConfig
from recurra.tasks.build import task_from_dataset, task_from_description
from recurra.tasks.translation import TranslationConfig, TranslationTask

from .conftest import Write, one_epoch

ENGLISH = build_vocabulary("words", ["two men talk", "a dog runs"])
GERMAN = build_vocabulary("characters", ["zwei reden", "ein hund"])
SCHEMA = SequenceSchema((Column("tokens", "uint8"), Column("target", "string", axis="sequence")))
METADATA = {"vocabulary": ENGLISH.to_json(), "target_vocabulary": GERMAN.to_json()}
ROWS = [{"tokens": ENGLISH.encode("two men talk"), "target": "zwei"}, {"tokens": ENGLISH.encode("a"), "target": "hund"}]
SMALL = ModelConfig(cell="gru", hidden_size=8, attention="additive")


def task_of(**settings: Any) -> TranslationTask:
    return TranslationTask(TranslationConfig(**{"longest": 6, **settings}), ENGLISH, GERMAN)


def batch_of(write: Write, rows: list[dict[str, Any]] = ROWS):
    return next(one_epoch(write(SCHEMA, METADATA, rows), mode="buckets", batch_sequences=len(rows)))


def test_the_answer_is_shifted_by_one_and_ends_with_the_end(write: Write):
    """`given` is what stands before each token of `next`."""
    tensors = task_of().tensors(batch_of(write, ROWS[:1]))
    ids = GERMAN.encode("zwei").tolist()
    assert tensors.targets["given"].tolist() == [[2, *ids]]
    assert tensors.targets["next"].tolist() == [[*ids, 2]]
    assert tensors.targets["counted"].all()


def test_a_uniform_model_has_the_perplexity_of_its_vocabulary(write: Write):
    """Counted over target tokens and their ends, padding excluded; smoothing leaves a uniform guess alone."""
    task = task_of(label_smoothing=0.3)
    tensors = task.tensors(batch_of(write))
    loss = task.loss(torch.zeros(2, 5, GERMAN.size), tensors)
    assert float(loss.count) == 10
    assert float(loss.total) / 10 == pytest.approx(math.log(GERMAN.size), rel=1e-5)
    sums = {name: float(value) for name, value in loss.sums.items()}
    assert task.metrics(float(loss.total), 10, sums)["perplexity"] == pytest.approx(GERMAN.size, rel=1e-4)


def test_longer_answers_than_the_model_can_say_are_cut(write: Write):
    """And filler rows cost nothing."""
    task = task_of(longest=2)
    assert task.tensors(batch_of(write)).targets["next"].shape == (2, 3)
    dataset = write(SCHEMA, METADATA, ROWS[:1])
    filler = next(one_epoch(dataset, mode="buckets", batch_sequences=2, rank=1, world_size=2))
    tensors = task.tensors(filler)
    outputs, _ = task.forward(task.build_model(SMALL), tensors, None)
    assert float(task.loss(outputs, tensors).total.detach()) == 0
    assert float(task.measure(task.build_model(SMALL).eval(), tensors, want_samples=True).sums["bleu.length"]) == 0


def test_bleu_is_of_what_the_model_generates(write: Write):
    """A model that always says `hund` scores on one of two references; teacher forcing has no part in it."""
    task = task_of(bleu_tokenize="char")
    model = task.build_model(SMALL).eval()
    tensors = task.tensors(batch_of(write))
    counts = task.measure(model, tensors, want_samples=True)
    answers = [sample["answer"] for sample in counts.samples]
    expected = task._bleu.counts(answers, [sample["reference"] for sample in counts.samples])
    assert {name: int(value) for name, value in counts.sums.items()} == {f"bleu.{k}": v for k, v in expected.items()}
    assert sorted(sample["text"] for sample in counts.samples) == ["a", "two men talk"]


def test_a_task_rebuilt_from_its_description_answers_the_same():
    """What serving does with a bundle."""
    task = task_of()
    again = task_from_description(json.loads(json.dumps(task.describe())))
    torch.manual_seed(0)
    model = task.build_model(SMALL).eval()
    encoded = again.encode({"text": "two men"})
    output = model(torch.from_numpy(encoded.inputs)[None])[0][0].numpy()
    answer = task.decode(output, encoded, {"alternatives": 2})
    assert answer == again.decode(output, encoded, {"alternatives": 2})
    assert len(answer["alternatives"]) <= 2
    scores = [answer["score"], *(one["score"] for one in answer["alternatives"])]
    assert scores == sorted(scores, reverse=True)


@pytest.mark.parametrize(
    ("instance", "message"),
    [
        ({}, "neither text nor tokens"),
        ({"text": ""}, "'text' is empty"),
        ({"tokens": [99]}, "holds 99 at index 0"),
        ({"source": "a"}, "'source' is not a field"),
    ],
)
def test_a_wrong_request_says_what_to_send(instance: Any, message: str):
    """422 with the field's name."""
    with pytest.raises(RequestError, match=message):
        task_of().encode(instance)


def test_more_alternatives_than_beams_are_refused():
    """The search kept no more."""
    task = task_of(beams=2)
    with pytest.raises(RequestError, match="whole number from 0 to 1"):
        task.decode(torch.zeros(2 * 8).numpy(), task.encode({"text": "a"}), {"alternatives": 2})


@pytest.mark.parametrize(
    ("columns", "metadata", "message"),
    [
        ((Column("tokens", "uint8"), Column("target", "uint8")), METADATA, "needs one text a sequence"),
        (SCHEMA.columns, {"vocabulary": ENGLISH.to_json()}, "has no 'target_vocabulary'"),
    ],
)
def test_a_dataset_that_does_not_fit_is_refused(columns: Any, metadata: dict, message: str):
    """Before anything is trained."""
    with pytest.raises(SchemaError, match=message):
        task_from_dataset(TranslationConfig(), SequenceSchema(columns), metadata)


def test_windows_are_refused(write: Write):
    """A text is translated as a whole."""
    batch = next(one_epoch(write(SCHEMA, METADATA, ROWS), mode="lanes", batch_sequences=1, window=2))
    with pytest.raises(ConfigError, match="Remove train.truncated_bptt"):
        task_of().tensors(batch)
