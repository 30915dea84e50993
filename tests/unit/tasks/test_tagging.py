import json
import math
from typing import Any

import numpy as np
import pytest
import torch

from recurra.data.schema import Column, SequenceSchema
from recurra.data.vocabulary import build_vocabulary
from recurra.data.words import build_character_vocabulary, build_word_vocabulary, spellings
from recurra.errors import ConfigError, RequestError, SchemaError
from recurra.models.config import ModelConfig
from recurra.tasks.build import task_from_dataset, task_from_description
from recurra.tasks.tagging import TaggingConfig, TaggingTask

from .conftest import Write, one_epoch

TAGS = ["O", "B-per", "I-per"]
SENTENCES = [["Ada", "Lovelace", "wrote"], ["we", "met", "Ada"]]
WORDS = build_word_vocabulary(SENTENCES)
LETTERS = build_character_vocabulary(SENTENCES)
PLAIN = SequenceSchema((Column("tokens", "uint8"), Column("tags", "uint8")))
SPELT = SequenceSchema((*PLAIN.columns, Column("characters", "uint8", width=6)))
METADATA = {"vocabulary": WORDS.to_json(), "character_vocabulary": LETTERS.to_json(), "tags": TAGS}


def task_of(*, crf: bool = False, spelt: bool = False) -> TaggingTask:
    config = TaggingConfig(crf=crf, characters="characters" if spelt else None)
    return TaggingTask(config, TAGS, WORDS, (LETTERS, 6) if spelt else None)


def example(words: list[str], tags: list[int], *, spelt: bool = False) -> dict[str, Any]:
    row: dict[str, Any] = {"tokens": WORDS.encode_words(words), "tags": tags}
    return {**row, "characters": spellings(LETTERS, words, 6)} if spelt else row


ROWS = [example(["Ada", "Lovelace", "wrote"], [1, 2, 0]), example(["we", "Ada"], [0, 1])]


def test_entity_f1_by_hand_over_batches_and_filler_rows(write: Write):
    """Truth: one entity in each sentence. The guess has the first too short and the second right: 1 of 2 and 2, F1 1/2.
    Four of five words are right."""
    task = task_of()
    guesses = {0: [1, 0, 0], 1: [0, 1, 0]}
    sums: dict[str, float] = {}
    total = count = 0.0
    dataset = write(PLAIN, METADATA, ROWS)
    for batch in one_epoch(dataset, mode="buckets", batch_sequences=1, world_size=1):
        outputs = torch.zeros(len(batch.ids), batch.lengths.max(), 3)
        for row, number in enumerate(batch.ids.tolist()):
            for step in range(outputs.shape[1]):
                outputs[row, step, guesses[number][step]] = 50
        loss = task.loss(outputs, task.tensors(batch))
        total, count = total + float(loss.total), count + float(loss.count)
        for name, value in loss.sums.items():
            sums[name] = sums.get(name, 0.0) + float(value)
    metrics = task.metrics(total, count, sums)
    assert (metrics["f1"], metrics["precision"], metrics["recall"]) == (0.5, 0.5, 0.5)
    assert metrics["accuracy"] == pytest.approx(0.8)
    assert metrics["words"] == 5


def test_a_uniform_model_costs_the_logarithm_of_the_tags_with_and_without_a_crf(write: Write):
    """Nats a word, padding excluded: the scale is the same, so that the two can be compared."""
    batch = next(one_epoch(write(PLAIN, METADATA, ROWS), mode="buckets", batch_sequences=2))
    for crf in (False, True):
        task = task_of(crf=crf)
        loss = task.loss(torch.zeros(2, 3, 12 if crf else 3), task.tensors(batch))
        assert float(loss.total) / float(loss.count) == pytest.approx(math.log(3))
        assert float(loss.count) == 5


def test_filler_rows_cost_nothing(write: Write):
    """A rank without a sentence still takes part; its rows are all padding."""
    dataset = write(PLAIN, METADATA, ROWS[:1])
    batch = next(one_epoch(dataset, mode="buckets", batch_sequences=2, rank=1, world_size=2))
    task = task_of(crf=True)
    tensors = task.tensors(batch)
    loss = task.loss(torch.randn(*tensors.inputs.shape, 12), tensors)
    assert (float(loss.total), float(loss.count)) == (0.0, 0.0)


def test_a_crf_forbids_what_single_tags_would_say():
    """Emissions alone prefer `O I-per`; a transition that costs 10 makes the entity begin."""
    task = task_of(crf=True)
    scores = np.zeros((2, 4, 3), np.float32)
    scores[0] += [1.0, 0.9, 0.0]
    scores[1] += [0.0, 0.0, 3.0]
    scores[1, 0, 2] -= 10
    answer = task.decode(scores.reshape(2, 12), task.encode({"words": ["Ada", "Lovelace"]}), {})
    assert answer["tags"] == ["B-per", "I-per"]
    assert answer["entities"] == [{"type": "per", "start": 0, "end": 2, "text": "Ada Lovelace"}]


def test_a_text_is_cut_and_keeps_its_case():
    """What the answer shows is what was sent."""
    encoded = task_of().encode({"text": "Ada wrote."})
    assert encoded.context["words"] == ["Ada", "wrote", "."]
    assert encoded.inputs.tolist() == [*WORDS.encode_words(["ada", "wrote"]).tolist(), 1]


def test_spellings_go_to_the_model_as_in_training(write: Write):
    """The endpoint must make the same numbers of a word as the dataset holds."""
    task = task_of(spelt=True)
    row = example(["Ada", "Lovelace", "wrote"], [1, 2, 0], spelt=True)
    batch = next(one_epoch(write(SPELT, METADATA, [row]), mode="buckets", batch_sequences=1))
    inputs = task.tensors(batch).inputs[0].numpy()
    np.testing.assert_array_equal(inputs, task.encode({"words": ["Ada", "Lovelace", "wrote"]}).inputs)


@pytest.mark.parametrize("spelt", [False, True])
@pytest.mark.parametrize("crf", [False, True])
def test_a_task_rebuilt_from_its_description_is_the_same(write: Write, crf: bool, spelt: bool):
    """Training describes, serving rebuilds: model and answers must not differ."""
    rows = [example(["Ada", "wrote"], [1, 0], spelt=True)]
    dataset = write(SPELT, METADATA, rows)
    config = TaggingConfig(crf=crf, characters="characters" if spelt else None)
    task = task_from_dataset(config, dataset.schema, dataset.metadata)
    again = task_from_description(json.loads(json.dumps(task.describe())))
    assert again.describe() == task.describe()
    torch.manual_seed(0)
    model = task.build_model(ModelConfig(cell="gru", hidden_size=8)).eval()
    torch.manual_seed(0)
    other = again.build_model(ModelConfig(cell="gru", hidden_size=8)).eval()
    encoded = task.encode({"text": "we met Ada"})
    inputs = torch.from_numpy(encoded.inputs)[None]
    with torch.no_grad():
        output, output_again = model(inputs)[0][0].numpy(), other(inputs)[0][0].numpy()
    assert task.decode(output, encoded, {}) == again.decode(output_again, again.encode({"text": "we met Ada"}), {})


@pytest.mark.parametrize(
    ("instance", "message"),
    [
        ({"words": "Ada"}, "'words' is a string. Send a list of words"),
        ({"words": ["Ada", ""]}, "holds an empty string at index 1"),
        ({"words": ["Ada", 3]}, "holds a number at index 1"),
        ({"words": []}, "'words' has no word"),
        ({"text": " "}, "'text' has no word"),
        ({}, "neither words nor text"),
        ({"words": ["a"], "text": "a"}, "words and text"),
        ({"word": ["a"]}, "'word' is not a field. Did you mean 'words'"),
    ],
)
def test_a_wrong_request_says_what_to_send(instance: Any, message: str):
    """422 with the field's name."""
    with pytest.raises(RequestError, match=message):
        task_of().encode(instance)


@pytest.mark.parametrize(
    ("config", "change", "message"),
    [
        ({}, {"tags": None}, "has no 'tags'"),
        ({}, {"tags": ["O", "O"]}, "at least two different names"),
        ({}, {"vocabulary": build_vocabulary("characters", ["abc"]).to_json()}, "tags belong to words"),
        ({"characters": "tags"}, {}, "needs character ids"),
        ({"characters": "characters"}, {"character_vocabulary": None}, "has no 'character_vocabulary'"),
    ],
)
def test_a_dataset_that_does_not_fit_is_refused(config: dict, change: dict, message: str):
    """Before anything is trained."""
    metadata = {name: value for name, value in {**METADATA, **change}.items() if value is not None}
    with pytest.raises(SchemaError, match=message):
        task_from_dataset(TaggingConfig(**config), SPELT, metadata)


def test_windows_are_refused(write: Write):
    """A sentence is tagged as a whole."""
    batch = next(one_epoch(write(PLAIN, METADATA, ROWS), mode="lanes", batch_sequences=1, window=2))
    with pytest.raises(ConfigError, match="Remove train.truncated_bptt"):
        task_of().tensors(batch)


def test_samples_show_tags_beside_answers(write: Write):
    """For the report of a run."""
    task = task_of(spelt=True)
    row = example(["Ada", "wrote"], [1, 0], spelt=True)
    batch = next(one_epoch(write(SPELT, METADATA, [row]), mode="buckets", batch_sequences=1))
    sample = task.samples(torch.tensor([[[0.0, 0, 9], [9, 0, 0]]]), task.tensors(batch))[0]
    assert sample == {"text": "ada wrote", "tags": "B-per O", "answer": "I-per O"}
