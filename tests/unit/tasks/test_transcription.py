import base64
import io
import json
import math
import wave
from typing import Any

import numpy as np
import pytest
import torch

from recurra.data.audio import FrontEnd
from recurra.data.schema import Column, SequenceSchema
from recurra.data.vocabulary import build_vocabulary
from recurra.errors import ConfigError, RequestError, SchemaError
from recurra.models.config import ModelConfig
from recurra.tasks.build import task_from_dataset, task_from_description
from recurra.tasks.transcription import TranscriptionConfig, TranscriptionTask

from .conftest import Write, one_epoch

LETTERS = build_vocabulary("characters", ["ab "])
SPACE, A, B = (int(LETTERS.encode(letter)[0]) for letter in " ab")
SCHEMA = SequenceSchema((Column("values", "float32", width=2), Column("target", "string", axis="sequence")))
METADATA = {"target_vocabulary": LETTERS.to_json()}
FRONT = FrontEnd(rate=8000, filters=20)


def task_of(front: FrontEnd | None = None, texts: tuple[str, ...] = (), **settings: Any) -> TranscriptionTask:
    config = TranscriptionConfig(**{"normalise": "none", **settings})
    return TranscriptionTask(config, 2 if front is None else front.width, LETTERS, front, texts)


def batch_of(write: Write, *texts: str, steps: int = 6, **options: Any):
    rows = [{"values": np.ones((steps, 2)) * n, "target": text} for n, text in enumerate(texts)]
    plan = {"mode": "buckets", "batch_sequences": len(texts), **options}
    return next(one_epoch(write(SCHEMA, METADATA, rows), **plan))


def certain(*paths: list[int]) -> torch.Tensor:
    """Outputs that say these symbols, frame by frame."""
    return 50.0 * torch.nn.functional.one_hot(torch.tensor(paths), LETTERS.size).float()


def test_error_rates_by_hand(write: Write):
    """`ab a` heard as `ab b`, and `b` as nothing: 2 of 3 words, 2 of 5 characters."""
    task = task_of()
    loss = task.loss(certain([A, B, SPACE, 0, B, B], [0, 0, 0, 0, 0, 0]), task.tensors(batch_of(write, "ab a", "b")))
    metrics = task.metrics(float(loss.total), float(loss.count), {k: float(v) for k, v in loss.sums.items()})
    assert metrics["wer"] == pytest.approx(100 * 2 / 3)
    assert metrics["cer"] == pytest.approx(100 * 2 / 5)


def test_the_loss_is_the_sum_over_alignments_by_hand(write: Write):
    """Two frames, uniform over 6 symbols: `a` has the paths `a-`, `-a` and `aa`, 3 of 36."""
    task = task_of()
    loss = task.loss(torch.zeros(1, 2, 6), task.tensors(batch_of(write, "a", steps=2)))
    assert float(loss.total) == pytest.approx(-math.log(3 / 36), rel=1e-5)
    assert float(loss.count) == 1


def test_a_text_that_no_alignment_can_say_costs_nothing(write: Write):
    """`aa` needs three frames, for a blank must stand between; infinity would end the run."""
    task = task_of()
    loss = task.loss(torch.zeros(1, 2, 6), task.tensors(batch_of(write, "aa", steps=2)))
    assert float(loss.total) == 0.0


def test_filler_rows_cost_nothing(write: Write):
    """A rank without a recording takes part all the same."""
    batch = batch_of(write, "a", batch_sequences=2, rank=1, world_size=2)
    task = task_of()
    loss = task.loss(torch.zeros(1, 6, 6), task.tensors(batch))
    assert (float(loss.total), float(loss.count), float(loss.sums["words"])) == (0.0, 0.0, 0.0)


def test_masks_are_for_training_alone(write: Write):
    """What is measured and served is the whole recording."""
    task = task_of(masks=2)
    torch.manual_seed(0)
    model = task.build_model(ModelConfig(hidden_size=4))
    tensors = task.tensors(batch_of(write, "a", "b", "ab", steps=30))
    whole = model.eval()(tensors.inputs, None, tensors.lengths)[0]
    torch.testing.assert_close(task.forward(model, tensors, None)[0], whole)
    assert not torch.allclose(task.forward(model.train(), tensors, None)[0], whole)


def test_samples_and_a_wav_file_are_what_the_front_end_makes_of_them():
    """The endpoint takes sound, and the model hears what it heard in training."""
    task = task_of(FRONT, normalise="utterance", stack=2)
    whole = np.round(8000 * np.sin(np.arange(1600) / 7)).astype("<i2")
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes(whole.tobytes())
    audio = base64.b64encode(buffer.getvalue()).decode()
    samples = whole / 32768
    by_samples = task.encode({"samples": samples.tolist()}).inputs
    by_values = task.encode({"values": FRONT.features(samples).tolist()}).inputs
    np.testing.assert_allclose(task.encode({"audio": audio}).inputs, by_samples, atol=1e-4)
    np.testing.assert_allclose(by_values, by_samples, atol=1e-4)
    assert by_samples.shape == (math.ceil((1 + (1600 - 200) // 80) / 2), 40)


def test_an_answer_by_greedy_and_by_search():
    """Two frames of blank 0.6 and `a` 0.4: the best path is silence, the best text `a`; the request chooses."""
    task = task_of()
    output = np.full((2, 6), -30.0, np.float32)
    output[:, [0, A]] = np.log([0.6, 0.4])
    encoded = task.encode({"values": [[0, 0], [0, 0]]})
    assert task.decode(output, encoded, {})["text"] == ""
    answer = task.decode(output, encoded, {"beams": 4, "alternatives": 1})
    assert answer["text"] == "a"
    assert answer["score"] == pytest.approx(math.log(0.64), abs=1e-4)
    assert [one["text"] for one in answer["alternatives"]] == [""]


def test_a_task_rebuilt_from_its_description_is_the_same():
    """With front end and language model."""
    mix = {"order": 2, "weight": 1.0, "bonus": 0.0}
    task = task_of(FRONT, ("ab", "ab"), beams=4, language_model=mix)
    again = task_from_description(json.loads(json.dumps(task.describe())))
    assert again.describe() == task.describe()
    output = np.zeros((5, 6), np.float32)
    output[0, A], output[4, B] = 5, 1
    encoded = task.encode({"values": [[0.0] * 20] * 5})
    assert task.decode(output, encoded, {}) == again.decode(output, encoded, {})


@pytest.mark.parametrize(
    ("instance", "message"),
    [
        ({}, "no values or samples or audio"),
        ({"values": []}, "'values' has no frame"),
        ({"values": [[1.0]]}, "Send 20 numbers for each step"),
        ({"samples": [0.1] * 50}, "'samples' is too short"),
        ({"audio": "@@"}, "no WAV file in base64"),
        ({"audio": base64.b64encode(b"RIFFxxxx").decode()}, "no WAV file in base64"),
        ({"text": "a"}, "'text' is not a field"),
    ],
)
def test_a_wrong_request_says_what_to_send(instance: Any, message: str):
    """422 with the field's name."""
    with pytest.raises(RequestError, match=message):
        task_of(FRONT).encode(instance)


def test_a_wav_file_of_another_rate_is_refused():
    """It would be heard at the wrong pitch."""
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(2)
        file.setsampwidth(2)
        file.setframerate(16000)
        file.writeframes(bytes(4000))
    audio = base64.b64encode(buffer.getvalue()).decode()
    with pytest.raises(RequestError, match=r"16000 samples a second in 2 channel\(s\). Send one channel of 8000"):
        task_of(FRONT).encode({"audio": audio})


def test_a_recording_is_not_sent_in_parts():
    """It is standardised as a whole, and a symbol may stand across the cut."""
    with pytest.raises(RequestError, match="as a whole"):
        task_of().encode({"values": [[1, 2]]}, context={})


def test_a_language_model_needs_beams_and_texts():
    """Greedy reading has no choice that a language model could make."""
    with pytest.raises(ConfigError, match="Set beams to 2 or more"):
        task_of(texts=("ab",), language_model={})
    with pytest.raises(ConfigError, match="language_model_texts"):
        task_of(beams=4, language_model={})


@pytest.mark.parametrize(
    ("columns", "metadata", "message"),
    [
        ((Column("values", "float32"), SCHEMA.columns[1]), METADATA, "float32 features of one width"),
        ((SCHEMA.columns[0], Column("target", "int32", axis="sequence")), METADATA, "needs one text a sequence"),
        (SCHEMA.columns, {}, "has no 'target_vocabulary'"),
    ],
)
def test_a_dataset_that_does_not_fit_is_refused(columns: Any, metadata: dict, message: str):
    """Before anything is trained."""
    with pytest.raises(SchemaError, match=message):
        task_from_dataset(TranscriptionConfig(), SequenceSchema(columns), metadata)


def test_windows_are_refused(write: Write):
    """A text belongs to a whole recording."""
    batch = batch_of(write, "ab", mode="lanes", batch_sequences=1, window=2)
    with pytest.raises(ConfigError, match="Remove train.truncated_bptt"):
        task_of().tensors(batch)


def test_samples_show_answers_beside_references(write: Write):
    """For the report of a run."""
    task = task_of()
    tensors = task.tensors(batch_of(write, "ab"))
    assert task.samples(certain([A, A, 0, 0, B, 0]), tensors) == [{"reference": "ab", "answer": "ab"}]
