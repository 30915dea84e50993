"""Every application learns: a small made-up set in seconds, and with the real set at hand its own job, past the baseline."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from recurra.data.schema import Column, SequenceSchema
from recurra.data.vocabulary import build_vocabulary
from recurra.data.words import build_character_vocabulary, build_word_vocabulary, spellings
from recurra.data.write import DatasetWriter
from recurra.orchestration.job_file import load_job
from recurra.training.work import train_here

JOBS = Path(__file__).parents[3] / "jobs"
REAL = Path(os.environ.get("RECURRA_TEST_DATA", "/nowhere"))
"""Folder of the real data sets, `<task>/<set>` below it."""

Learn = Callable[..., dict[str, float]]


@pytest.fixture
def learn(tmp_path: Path) -> Learn:
    """Trains a job file with changes, in this process; gives the metrics of the best checkpoint."""

    def run(values: dict[str, Any], **changes: Any) -> dict[str, float]:
        values = {**values, "name": "learning", "runs": f"file://{tmp_path}/runs"}
        for name in ("publish", "serve"):
            values.pop(name, None)
        for path, value in changes.items():
            section, _, key = path.partition("__")
            values[section] = {**values[section], key: value} if key else value
        file = tmp_path / "learning.yaml"
        file.write_text(yaml.safe_dump(values))
        return train_here(load_job(file).train_run()).metrics

    return run


def job_of(name: str, url: str) -> dict[str, Any]:
    """A job file as it stands, on the data at `url`."""
    values: dict[str, Any] = yaml.safe_load((JOBS / name / "job.yaml").read_text())
    values["data"] |= {split: f"{url}/{values['data'][split].rsplit('/', 1)[1]}" for split in ("train", "eval")}
    return values


def prepare(job: str, source: str, url: str, *arguments: str) -> None:
    """Write a real set, or skip where there is none."""
    folder = REAL / source
    if not folder.is_dir():
        pytest.skip(f"RECURRA_TEST_DATA has no {source}")
    command = [sys.executable, JOBS / job / "prepare.py", "--source", folder, "--out", url, *arguments]
    subprocess.run(command, check=True, capture_output=True, timeout=300)


def test_a_tagger_learns_what_spelling_and_neighbours_say(learn: Learn, local_url: str):
    """Names are words in capitals that no vocabulary has, and after `mr` they go on: spelling and transitions decide."""
    rows = []
    for number in range(120):
        name = ["Q" + "xyz"[number % 3] * (1 + number % 4), "Zu" + "ab"[number % 2] * (number % 5)]
        rows.append((["we", "saw", *name, "today"], ["O", "O", "B-per", "I-per", "O"]))
        rows.append((["today", "we", "ate"], ["O", "O", "O"]))
    words = build_word_vocabulary([own for own, _ in rows], min_count=100)
    letters = build_character_vocabulary([own for own, _ in rows])
    tags = ["O", "B-per", "I-per"]
    schema = SequenceSchema(
        (Column("tokens", words.dtype), Column("characters", letters.dtype, width=8), Column("tags", "uint8"))
    )
    metadata = {"vocabulary": words.to_json(), "character_vocabulary": letters.to_json(), "tags": tags}
    for split, part in (("train", rows[:160]), ("eval", rows[160:])):
        with DatasetWriter(f"{local_url}/{split}", schema, metadata) as writer:
            for own, marks in part:
                spelt = spellings(letters, own, 8)
                writer.write(
                    {
                        "tokens": words.encode_words(own),
                        "characters": spelt,
                        "tags": [tags.index(mark) for mark in marks],
                    }
                )
    job = {
        "task": {"kind": "tagging", "characters": "characters"},
        "data": {"train": f"{local_url}/train", "eval": f"{local_url}/eval"},
        "model": {"cell": "gru", "hidden_size": 16, "bidirectional": True},
        "train": {"steps": 40, "learning_rate": 0.02, "global_batch": {"sequences": 16}},
    }
    assert learn(job)["f1"] > 0.95


def test_a_translator_learns_to_turn_words_round(learn: Learn, local_url: str):
    """Attention has to look at the other end of the source each time; copying scores next to nothing."""
    rng = np.random.default_rng(0)
    letters = build_vocabulary("characters", ["abcdef "])
    schema = SequenceSchema((Column("tokens", letters.dtype), Column("target", "string", axis="sequence")))
    metadata = {"vocabulary": letters.to_json(), "target_vocabulary": letters.to_json()}
    for split, count in (("train", 320), ("eval", 40)):
        with DatasetWriter(f"{local_url}/{split}", schema, metadata) as writer:
            for _ in range(count):
                text = "".join(rng.choice(list("abcdef"), rng.integers(4, 7)))
                writer.write({"tokens": letters.encode(text), "target": text[::-1]})
    job = {
        "task": {"kind": "translation", "bleu_tokenize": "char", "longest": 10, "beams": 2},
        "data": {"train": f"{local_url}/train", "eval": f"{local_url}/eval"},
        "model": {"cell": "gru", "hidden_size": 48, "bidirectional": True, "attention": "multiplicative"},
        "train": {"steps": 120, "learning_rate": 0.01, "global_batch": {"sequences": 40}, "evaluate_every": 200},
    }
    assert learn(job)["bleu"] > 80


def test_a_transcriber_learns_which_frames_say_what(learn: Learn, local_url: str):
    """Each letter is a tone of a few frames in noise; nobody says which frames are whose."""
    rng = np.random.default_rng(0)
    letters = build_vocabulary("characters", ["abcd"])
    schema = SequenceSchema((Column("values", "float32", width=4), Column("target", "string", axis="sequence")))
    for split, count in (("train", 200), ("eval", 30)):
        with DatasetWriter(f"{local_url}/{split}", schema, {"target_vocabulary": letters.to_json()}) as writer:
            for _ in range(count):
                text = "".join(rng.choice(list("abcd"), rng.integers(2, 5)))
                frames = [np.eye(4)["abcd".index(c)][None].repeat(rng.integers(2, 5), 0) for c in text]
                values = np.concatenate([part for one in frames for part in (one, np.zeros((2, 4)))])
                writer.write({"values": values + 0.1 * rng.normal(size=values.shape), "target": text})
    job = {
        "task": {"kind": "transcription", "beams": 4, "normalise": "none"},
        "data": {"train": f"{local_url}/train", "eval": f"{local_url}/eval"},
        "model": {"cell": "gru", "hidden_size": 32, "bidirectional": True},
        "train": {"steps": 160, "learning_rate": 0.02, "schedule": "cosine", "global_batch": {"sequences": 20}},
    }
    assert learn(job)["cer"] < 10


def test_several_labels_are_learnt_each_by_itself(learn: Learn, local_url: str):
    """Three words, each with a label of its own, in any company: a softmax could name one of them only."""
    rng = np.random.default_rng(0)
    words = build_vocabulary("words", ["rain wind sun and then"])
    names = ["rain", "wind", "sun"]
    schema = SequenceSchema((Column("tokens", words.dtype), Column("label", "uint8", axis="sequence", width=3)))
    for split, count in (("train", 160), ("eval", 40)):
        with DatasetWriter(f"{local_url}/{split}", schema, {"vocabulary": words.to_json(), "labels": names}) as writer:
            for _ in range(count):
                flags = rng.integers(0, 2, 3)
                said = ["and", "then", *(name for name, flag in zip(names, flags, strict=True) if flag)]
                writer.write({"tokens": words.encode(" ".join(rng.permutation(said))), "label": flags})
    job = {
        "task": {"kind": "classification", "multi_label": True},
        "data": {"train": f"{local_url}/train", "eval": f"{local_url}/eval"},
        "model": {"cell": "gru", "hidden_size": 16, "pooling": "max"},
        "train": {"steps": 60, "learning_rate": 0.02, "global_batch": {"sequences": 16}},
    }
    metrics = learn(job)
    assert metrics["micro_f1"] > 0.95
    assert metrics["accuracy"] > 0.9


@pytest.mark.data_dir
@pytest.mark.timeout(1800)
def test_captions_are_translated_far_better_than_by_the_nearest_training_sentence(learn: Learn, local_url: str):
    """Multi30k, test2016: the translation of the nearest training sentence has BLEU 10.0."""
    prepare("translation", "mt/multi30k_en_de", local_url)
    job = job_of("translation", local_url)
    assert learn(job, data__eval=f"{local_url}/test", train__evaluate_every=100_000)["bleu"] > 15


@pytest.mark.data_dir
@pytest.mark.timeout(1800)
def test_recordings_are_understood(learn: Learn, local_url: str):
    """AN4's test set: silence has a word error rate of 100 %."""
    prepare("speech", "speech/an4_mfcc", local_url)
    assert learn(job_of("speech", local_url))["wer"] < 30


@pytest.mark.data_dir
def test_entities_are_found_far_more_often_than_by_a_dictionary(learn: Learn, local_url: str):
    """WNUT 2017, test set: a dictionary of the training entities has F1 0.03."""
    prepare("entities", "ner/wnut17", local_url)
    metrics = learn(job_of("entities", local_url), data__eval=f"{local_url}/test", train__evaluate_every=100_000)
    assert metrics["f1"] > 0.09
