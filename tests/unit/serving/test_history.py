"""What a session has read, as bytes and back."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.serving.conftest import small_model

from recurra.data.vocabulary import ByteVocabulary, CharacterVocabulary
from recurra.models.sequence import ModelShape
from recurra.serving.history import Histories, History
from recurra.serving.journal import from_entry, to_entry, worth_it
from recurra.serving.sessions import empty_snapshot
from recurra.serving.slots import StateLayout
from recurra.serving.snapshot import from_bytes, to_bytes
from recurra.tasks.anomaly import AnomalyConfig, AnomalyTask
from recurra.tasks.classification import ClassificationConfig, ClassificationTask
from recurra.tasks.language_model import LanguageModelConfig, LanguageModelTask
from recurra.tasks.music import MusicConfig, MusicTask

LAYOUT = StateLayout(small_model().state_spec)
TASK = LanguageModelTask(LanguageModelConfig(), ByteVocabulary())


def tokens(size: int, keep: int = 4096, task=TASK) -> Histories:
    return Histories(task, ModelShape("tokens", size, size, per_step=True), keep)


def features(width: int, keep: int = 4096) -> Histories:
    return Histories(MusicTask(MusicConfig(), width, 60), ModelShape("features", width, width, per_step=True), keep)


@given(
    parts=st.lists(st.lists(st.integers(0, 299), max_size=7), max_size=8),
    keep=st.integers(1, 12),
)
def test_however_it_was_read_the_history_is_the_end_of_it(parts, keep):
    """Law: cut into whichever parts, the last `keep` inputs in order, and how many there were."""
    histories = tokens(300, keep)
    history = histories.beginning()
    for part in parts:
        history = histories.after(history, np.array(part, np.int64))
    everything = [token for part in parts for token in part]

    assert history.wide().tolist() == everything[-keep:]
    assert history.wide().dtype == np.int64
    assert (history.count, history.dropped) == (len(everything), max(0, len(everything) - keep))


@pytest.mark.parametrize(("size", "width"), [(2, 1), (256, 1), (257, 2), (65536, 2), (65537, 4)])
def test_a_token_takes_as_few_bytes_as_the_vocabulary_allows(size, width):
    """The largest id of it comes back."""
    histories = tokens(size)
    history = histories.after(histories.beginning(), np.array([0, size - 1]))

    assert history.size_bytes == 2 * width
    assert history.wide().tolist() == [0, size - 1]


@settings(max_examples=20)
@given(kind=st.sampled_from([17, 300, 70_000, "features"]), count=st.integers(0, 5), digest=st.sampled_from(["a", "b"]))
def test_a_snapshot_keeps_its_history(kind, count, digest):
    """For a reader of whichever bundle, and in what a client gets, too."""
    histories = features(3) if kind == "features" else tokens(kind)
    inputs = np.random.rand(count, 3).astype(np.float32) if kind == "features" else np.arange(count)
    history = histories.after(replace(histories.beginning(), dropped=4), inputs)
    snapshot = replace(empty_snapshot("m", "a", bytes(LAYOUT.row_bytes), 0.0), history=history)

    for export in (False, True):
        read = from_bytes(to_bytes(snapshot, LAYOUT, export=export), LAYOUT, digest).history
        assert (read.encoding, read.dropped, read.inputs.dtype) == (history.encoding, 4, history.inputs.dtype)
        assert read.inputs.shape == history.inputs.shape and (read.inputs == history.inputs).all()
        assert histories.fits(read)


def test_a_snapshot_of_a_time_without_histories_is_read():
    """Its session has none, and never gets one."""
    snapshot = empty_snapshot("m", "a", bytes(LAYOUT.row_bytes), 0.0)
    data = to_bytes(snapshot, LAYOUT)

    assert b"history" not in data
    assert from_bytes(data, LAYOUT, "a") == snapshot
    assert tokens(17).after(from_bytes(data, LAYOUT, "a").history, np.arange(3)) is None


def test_a_session_that_has_ended_keeps_nothing():
    snapshot = replace(empty_snapshot("m", "a", b"", 0.0), history=tokens(17).beginning())

    assert snapshot.tombstone("deleted", 1.0).history is None


def test_a_long_history_travels_as_journal_entries():
    """A step is then its own inputs, however small the state."""
    histories = tokens(17)
    short = replace(empty_snapshot("m", "a", bytes(96), 0.0), history=histories.beginning())
    long = replace(short, history=histories.after(short.history, np.arange(4096) % 17))
    consumed = np.array([3])

    assert not worth_it(short, consumed, 64)
    assert worth_it(long, consumed, 64)
    entry = to_entry(long, consumed)
    assert len(entry) < 600
    assert from_entry(entry)[0].history is None


def test_only_what_was_read_in_the_same_way_is_read_again():
    """The same numbers may mean something else: another vocabulary of the same size, a scale, a width."""
    letters = [LanguageModelTask(LanguageModelConfig(), CharacterVocabulary(text)) for text in ("abc", "cab")]
    size = letters[0].vocabulary.size
    own = tokens(size, task=letters[0])
    read = own.after(own.beginning(), np.arange(3))

    assert tokens(size, task=letters[0], keep=7).fits(read)
    assert not tokens(size, task=letters[1]).fits(read)
    assert not tokens(size, keep=0).fits(read)
    assert not tokens(300, task=letters[0]).fits(read)
    assert not features(3).fits(read)
    assert not features(3).fits(features(4).beginning())


def test_what_only_answers_depend_on_is_no_other_way_to_read():
    """A threshold is another one with each training, and a label more reads no other inputs; a scale does."""
    scaled = {"mean": [1.0], "deviation": [2.0]}
    machines = AnomalyTask(AnomalyConfig(), events=["open", "close"], threshold=1.0)
    kinds = [
        ClassificationTask(ClassificationConfig(), labels, ByteVocabulary(), None)
        for labels in (["a", "b"], ["a", "b", "c"])
    ]

    assert machines.reading() == machines.calibrated({"threshold": 3.0}).reading()
    assert machines.describe() != machines.calibrated({"threshold": 3.0}).describe()
    assert kinds[0].reading() == kinds[1].reading()
    assert machines.from_description({**machines.describe(), "scale": scaled}).reading() != machines.reading()


def test_a_history_of_another_kind_of_numbers_is_no_history():
    assert not tokens(17).fits(History(np.zeros(3, np.float32), tokens(17).beginning().encoding))
