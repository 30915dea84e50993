import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from recurra.data.schema import Column, SequenceSchema
from recurra.data.vocabulary import ByteVocabulary, build_vocabulary
from recurra.errors import RequestError, SchemaError
from recurra.models.config import ModelConfig
from recurra.tasks.build import task_from_dataset, task_from_description
from recurra.tasks.language_model import LanguageModelConfig, LanguageModelTask

from .conftest import Write, one_epoch

BYTES = SequenceSchema((Column("tokens", "uint8"),))
TEXTS = ["def f():\n", "x", "return 1 + 2\n" * 3]


def with_bos(text: str) -> dict[str, np.ndarray]:
    return {"tokens": np.concatenate([np.zeros(1, np.uint8), ByteVocabulary().encode(text)])}


def byte_task() -> LanguageModelTask:
    return LanguageModelTask(LanguageModelConfig(), ByteVocabulary())


@pytest.mark.parametrize(
    "options",
    [
        {"mode": "lanes", "batch_sequences": 2, "window": 5, "lookahead": 1},
        {"mode": "packed", "batch_sequences": 2, "window": 5, "lookahead": 1},
        {"mode": "buckets", "batch_sequences": 2},
    ],
    ids=lambda options: options["mode"],
)
def test_every_token_but_the_first_of_a_document_is_predicted_once(write: Write, options):
    """Bits per byte count every byte of text once, however batches are cut, and never a bos."""
    task = byte_task()
    dataset = write(BYTES, {"vocabulary": task.vocabulary.to_json()}, map(with_bos, TEXTS))

    predicted = []
    for batch in one_epoch(dataset, **options):
        tensors = task.tensors(batch)
        predicted += tensors.targets["next"][tensors.targets["counted"]].tolist()
    assert sorted(predicted) == sorted("".join(TEXTS).encode())


def test_a_target_is_the_token_behind_its_input(write: Write):
    """An offset of one too few or too many trains a copier or a clairvoyant."""
    task = byte_task()
    dataset = write(BYTES, {"vocabulary": task.vocabulary.to_json()}, [with_bos("abcd")])

    tensors = task.tensors(next(one_epoch(dataset, mode="lanes", batch_sequences=1, window=8, lookahead=1)))
    assert tensors.inputs[0].tolist()[:4] == [0, *b"abc"]
    assert tensors.targets["next"][0].tolist()[:4] == [*b"abcd"]


def test_a_uniform_model_costs_the_logarithm_of_the_vocabulary(write: Write):
    """The metric's scale: log2(256) = 8 bits for a byte, perplexity 256."""
    task = byte_task()
    dataset = write(BYTES, {"vocabulary": task.vocabulary.to_json()}, map(with_bos, TEXTS))
    batch = next(one_epoch(dataset, mode="buckets", batch_sequences=4))
    tensors = task.tensors(batch)

    loss = task.loss(torch.zeros(*tensors.inputs.shape, 256), tensors)
    metrics = task.metrics(float(loss.total), float(loss.count), {})
    assert metrics["bits_per_token"] == pytest.approx(8)
    assert metrics["perplexity"] == pytest.approx(256, rel=1e-5)
    assert metrics["tokens"] == len("".join(TEXTS))


def test_the_loss_is_the_sum_of_what_was_given_to_the_right_tokens(write: Write):
    """By hand: logits (log 3, 0, ...) give the right byte 3 / (3 + 255)."""
    task = byte_task()
    dataset = write(BYTES, {"vocabulary": task.vocabulary.to_json()}, [with_bos("aa")])
    tensors = task.tensors(next(one_epoch(dataset, mode="buckets", batch_sequences=1)))
    logits = torch.zeros(1, 2, 256)
    logits[:, :, ord("a")] = math.log(3)

    loss = task.loss(logits, tensors)
    assert float(loss.total) == pytest.approx(2 * math.log(258 / 3), rel=1e-6)
    assert int(loss.count) == 2


def test_a_prompt_starts_with_bos_and_what_follows_in_a_session_does_not():
    """A bos in mid-session would make the model forget what it has read."""
    task = byte_task()

    first = task.encode({"prompt": "ab"})
    assert first.inputs.tolist() == [0, *b"ab"]
    assert task.encode({"text": "c"}, first.context).inputs.tolist() == [*b"c"]
    assert task.encode({"tokens": [0, 97]}).inputs.tolist() == [0, 97]
    assert task.encode({"prompt": ""}).inputs.tolist() == [0]


@pytest.mark.parametrize(
    ("instance", "message"),
    [
        ({"tokens": [3, 256]}, "holds 256 at index 1, and the model knows tokens 0 to 255"),
        ({"tokens": [-1]}, "holds -1 at index 0"),
        ({"tokens": [1.5]}, "holds a number at index 0. Send whole numbers"),
        ({"tokens": [True]}, "holds a boolean at index 0"),
        ({"tokens": "abc"}, "'tokens' is a string. Send a list"),
        ({"prompt": 7}, "'prompt' is a number. Send a string"),
        ({"promt": "a"}, "'promt' is not a field. Did you mean 'prompt'"),
        ({}, "none of prompt, text, tokens"),
        ({"prompt": "a", "tokens": [1]}, "prompt and tokens. Send one of them"),
        ("def", "The instance is a string. Send an object"),
        (None, "The instance is null"),
    ],
)
def test_a_wrong_instance_is_told_what_to_send(instance, message):
    """A client sees nothing but this message."""
    with pytest.raises(RequestError, match=message) as caught:
        byte_task().encode(instance)
    assert caught.value.status == 422


def test_nothing_at_all_in_mid_session_is_refused():
    """There would be no output to answer with."""
    with pytest.raises(RequestError, match="'text' is empty"):
        byte_task().encode({"text": ""}, {})


def test_the_answer_ranks_next_tokens_and_counts_the_bits_of_the_input():
    """By hand: uniform logits spend 8 bits on each byte after bos."""
    task = byte_task()
    logits = np.zeros((3, 256), np.float32)
    logits[-1, ord("x")] = 5

    answer = task.decode(logits, task.encode({"prompt": "ab"}), {"top": 2})
    assert answer["bits"] == pytest.approx(16)
    assert answer["next"][0]["text"] == "x"
    assert answer["next"][0]["logprob"] == pytest.approx(5 - math.log(255 + math.exp(5)))
    assert len(answer["next"]) == 2
    with pytest.raises(RequestError, match="'top' is 0. Send a whole number from 1 to 100"):
        task.decode(logits, task.encode({"prompt": "ab"}), {"top": 0})


def test_a_character_of_several_bytes_is_never_cut_in_two():
    """Streams send text as it comes; half of an 'é' would be a broken answer."""
    stream = byte_task().text_stream()

    assert [stream.feed([byte]) for byte in "é€".encode()] == ["", "é", "", "", "€"]
    assert byte_task().text_of([0, 0xC3]) == "\ufffd"


@given(st.text(max_size=30))
def test_a_described_task_encodes_as_the_one_that_was_trained(text):
    """Serving has the description alone."""
    for kind in ("bytes", "characters", "words"):
        task = LanguageModelTask(LanguageModelConfig(), build_vocabulary(kind, ["a b c é", "to be"]))
        rebuilt = task_from_description(task.describe())
        encoded, again = task.encode({"prompt": text}), rebuilt.encode({"prompt": text})

        assert again.inputs.tolist() == encoded.inputs.tolist()
        logits = np.random.default_rng(0).normal(size=(len(encoded.inputs), task.vocabulary.size)).astype(np.float32)
        assert rebuilt.decode(logits, again, {}) == task.decode(logits, encoded, {})
        assert rebuilt.describe() == task.describe()


def test_the_model_has_one_output_for_each_token_of_the_vocabulary():
    """The head's size comes from the data, not from the job file."""
    vocabulary = build_vocabulary("words", ["to be or not to be"])
    model = LanguageModelTask(LanguageModelConfig(), vocabulary).build_model(ModelConfig(hidden_size=4))

    outputs, _ = model(torch.tensor([[2, 3, 4]]))
    assert outputs.shape == (1, 3, vocabulary.size)


def test_a_dataset_that_does_not_fit_says_how_to_write_it():
    """It is found before the run starts, not in the first batch."""
    floats = SequenceSchema((Column("tokens", "float32"),))
    vocabulary = {"vocabulary": ByteVocabulary().to_json()}
    with pytest.raises(SchemaError, match=r"Column 'tokens' is float32 \[T\], and the task needs token ids"):
        task_from_dataset(LanguageModelConfig(), floats, vocabulary)
    with pytest.raises(SchemaError, match="has no column 'bytes'"):
        task_from_dataset(LanguageModelConfig(column="bytes"), BYTES, vocabulary)
    with pytest.raises(SchemaError, match="metadata has no 'vocabulary'"):
        task_from_dataset(LanguageModelConfig(), BYTES, {})


def test_samples_show_text_beside_guesses(write: Write):
    """The report shows what the numbers mean."""
    task = byte_task()
    dataset = write(BYTES, {"vocabulary": task.vocabulary.to_json()}, [with_bos("hello")])
    tensors = task.tensors(next(one_epoch(dataset, mode="buckets", batch_sequences=1)))
    logits = torch.zeros(1, 5, 256)
    logits[..., ord("l")] = 9

    (sample,) = task.samples(logits, tensors)
    assert sample["text"] == "hello"
    assert sample["guesses"] == "lllll"


def test_subwords_predict_pieces_and_give_back_text():
    """A bundle keeps the merges; a completion's pieces become text again, spaces and all."""
    vocabulary = build_vocabulary("subwords", TEXTS * 3, max_size=280)
    task = LanguageModelTask(LanguageModelConfig(), vocabulary)
    again = task_from_description(task.describe())
    assert isinstance(again, LanguageModelTask)
    encoded = again.encode({"prompt": "return 1 + é"})
    assert encoded.inputs[0] == vocabulary.bos
    assert len(encoded.inputs) < 1 + len("return 1 + é".encode())
    assert again.text_of(encoded.inputs.tolist()) == "return 1 + é"
    assert task.build_model(ModelConfig(hidden_size=4)).shape.output_size == vocabulary.size <= 280
