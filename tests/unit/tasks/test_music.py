import numpy as np
import pytest
import torch

from recurra.data.schema import Column, SequenceSchema
from recurra.errors import RequestError, SchemaError
from recurra.models.config import ModelConfig
from recurra.tasks.build import task_from_dataset, task_from_description
from recurra.tasks.music import MusicConfig, MusicTask

from .conftest import Write, one_epoch

SCHEMA = SequenceSchema((Column("notes", "uint8", width=3),))
METADATA = {"lowest_note": 60}
TASK = MusicTask(MusicConfig(), 3, 60)
PIECE = [[1, 0, 0], [1, 1, 0], [0, 0, 0]]


def numbers(loss):
    return float(loss.total), float(loss.count), {name: float(value) for name, value in loss.sums.items()}


def test_the_loss_is_the_likelihood_of_all_notes_of_a_step(write: Write):
    """By hand: two steps are predicted, the first is not. With odds of 3 for one note of the first and for two of the
    second, NLL = -(ln 3/4 + 2 ln 1/2) - (ln 1/2 + 2 ln 1/4), over 2 steps; 1 note right, 1 missed, 2 wrong."""
    dataset = write(SCHEMA, METADATA, [{"notes": PIECE}])
    tensors = TASK.tensors(next(one_epoch(dataset, mode="buckets", batch_sequences=1)))
    odds = float(np.log(3))
    outputs = torch.zeros(1, 2, 3)
    outputs[0, 0] = torch.tensor([odds, -1e-9, -1e-9])
    outputs[0, 1] = torch.tensor([odds, odds, -1e-9])

    metrics = TASK.metrics(*numbers(TASK.loss(outputs, tensors)))
    assert metrics["nll"] == pytest.approx(-(np.log(3 / 4) + 3 * np.log(1 / 2) + 2 * np.log(1 / 4)) / 2, rel=1e-6)
    assert metrics["accuracy"] == pytest.approx(1 / 4)
    assert metrics["steps"] == 2


def test_windows_are_scored_as_whole_pieces(write: Write):
    """Truncated backpropagation cuts pieces anywhere, and no step is lost, counted twice or predicted across a start."""
    rng = np.random.default_rng(1)
    pieces = [{"notes": rng.integers(0, 2, (length, 3))} for length in (7, 4, 9, 2)]
    dataset = write(SCHEMA, METADATA, pieces)

    whole = sum(
        float(TASK.tensors(batch).targets["counted"].sum())
        for batch in one_epoch(dataset, mode="buckets", batch_sequences=4)
    )
    options = {"mode": "lanes", "window": 3, "lookahead": TASK.lookahead, "batch_sequences": 2}
    cut = sum(float(TASK.tensors(batch).targets["counted"].sum()) for batch in one_epoch(dataset, **options))
    assert whole == cut == 6 + 3 + 8 + 1


def test_a_request_names_notes_by_their_midi_numbers():
    """What every instrument and library calls them; a rest is a step, too."""
    encoded = TASK.encode({"notes": [[60, 62], []]})

    assert encoded.inputs.tolist() == [[1, 0, 1], [0, 0, 0]]


def test_an_answer_holds_likely_notes_and_a_draw():
    """Logits of the last step alone count; at temperature 0 the draw is what is likelier than not."""
    output = np.array([[9, 9, 9], [np.log(3), -9, np.log(1 / 3)]], np.float32)
    encoded = TASK.encode({"notes": [[60], [61]]})

    answer = TASK.decode(output, encoded, {"temperature": 0})
    assert answer["sample"] == [60]
    assert answer["probabilities"] == {"60": pytest.approx(0.75), "62": pytest.approx(0.25)}
    assert list(TASK.decode(output, encoded, {"least": 0.5})["probabilities"]) == ["60"]
    drawn = [TASK.decode(output, encoded, {"seed": seed})["sample"] for seed in range(400)]
    assert drawn[7] == TASK.decode(output, encoded, {"seed": 7})["sample"]
    assert np.mean([60 in notes for notes in drawn]) == pytest.approx(0.75, abs=0.08)
    assert np.mean([62 in notes for notes in drawn]) == pytest.approx(0.25, abs=0.08)


@pytest.mark.parametrize(
    ("instance", "message"),
    [
        ([1], "The instance is a list"),
        ({"tones": []}, "'tones' is not a field"),
        ({}, "'notes' is None. Send one list of MIDI numbers for each step"),
        ({"notes": []}, "Send one list of MIDI numbers"),
        ({"notes": [60]}, "Send one list of MIDI numbers"),
        ({"notes": [[60], [63]]}, "'notes' holds 63 at step 1. Send MIDI numbers from 60 to 62"),
        ({"notes": [[True]]}, "'notes' holds True at step 0"),
        ({"notes": [[60.5]]}, "'notes' holds 60.5 at step 0"),
    ],
)
def test_a_wrong_request_says_what_to_send(instance, message):
    """Nobody reads the source to learn what the endpoint takes."""
    with pytest.raises(RequestError, match=message.replace("[", r"\[")):
        TASK.encode(instance)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -1}, "'temperature' is -1. Send a number from 0 to 10"),
        ({"seed": 1.5}, "'seed' is 1.5. Send a whole number"),
        ({"least": "all"}, "'least' is 'all'. Send a number from 0 to 1"),
    ],
)
def test_a_wrong_option_is_named(options, message):
    """Before anything is drawn."""
    with pytest.raises(RequestError, match=message):
        TASK.decode(np.zeros((1, 3), np.float32), TASK.encode({"notes": [[60]]}), options)


@pytest.mark.parametrize(
    ("column", "metadata", "message"),
    [
        (Column("notes", "uint8"), METADATA, r"Column 'notes' is uint8 \[T\], and music needs uint8 with a width"),
        (Column("notes", "float32", width=3), METADATA, "music needs uint8"),
        (Column("notes", "uint8", width=3), {}, "metadata has lowest_note None. Write it with"),
    ],
)
def test_a_dataset_that_is_no_music_is_refused(column, metadata, message):
    """At the start of a run, not in its middle."""
    with pytest.raises(SchemaError, match=message):
        task_from_dataset(MusicConfig(), SequenceSchema((column,)), metadata)


def test_a_task_from_its_description_is_the_same():
    """Serving knows only what the bundle says."""
    task = task_from_dataset(MusicConfig(), SCHEMA, METADATA)
    again = task_from_description(task.describe())

    assert again.describe() == task.describe()
    assert again.encode({"notes": [[61]]}).inputs.tolist() == [[0, 1, 0]]
    assert again.request_schema() == task.request_schema()
    assert "60 to 62" in again.limits()[0]


def test_a_report_shows_piano_rolls(write: Write):
    """High notes on top, only notes that are used."""
    tensors = TASK.tensors(
        next(one_epoch(write(SCHEMA, METADATA, [{"notes": PIECE}]), mode="buckets", batch_sequences=4))
    )
    outputs = torch.full((1, 2, 3), -1.0)
    outputs[0, 1, 0] = 1

    assert TASK.samples(outputs, tensors) == [{"bits": [[1, 1], [0, 0]], "answer": [[0, 0], [0, 1]]}]


def test_it_learns_a_tune(write: Write):
    """Three chords in turn: after a minute of music each is sure to follow the one before."""
    turns = np.eye(3, dtype=np.uint8)
    dataset = write(SCHEMA, METADATA, [{"notes": turns[(np.arange(12) + first) % 3]} for first in range(3)])
    tensors = TASK.tensors(next(one_epoch(dataset, mode="buckets", batch_sequences=3)))
    torch.manual_seed(0)
    model = TASK.build_model(ModelConfig(cell="gru", hidden_size=16))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.03)
    for _ in range(80):
        loss = TASK.loss(model(tensors.inputs, None, tensors.lengths)[0], tensors)
        optimizer.zero_grad()
        (loss.total / loss.count).backward()
        optimizer.step()

    with torch.no_grad():
        metrics = TASK.metrics(*numbers(TASK.loss(model(tensors.inputs)[0], tensors)))
    assert metrics["nll"] < 0.2 and metrics["accuracy"] == 1
