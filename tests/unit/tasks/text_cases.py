"""Small tasks of text and speech, for the laws of every task."""

from __future__ import annotations

import numpy as np

from recurra.data.schema import Column, SequenceSchema
from recurra.data.vocabulary import build_vocabulary
from recurra.data.words import build_character_vocabulary, build_word_vocabulary, spellings
from recurra.models.config import ModelConfig
from recurra.tasks.build import task_from_dataset
from recurra.tasks.tagging import TaggingConfig
from recurra.tasks.transcription import TranscriptionConfig
from recurra.tasks.translation import TranslationConfig

from .cases import Case
from .conftest import Write


def tagging(write: Write) -> Case:
    sentences = [["Ada", "wrote"], ["we", "met", "Ada"], ["Ada"]]
    words, letters = build_word_vocabulary(sentences), build_character_vocabulary(sentences)
    schema = SequenceSchema(
        (Column("tokens", words.dtype), Column("characters", letters.dtype, width=5), Column("tags", "uint8"))
    )
    rows = [
        {
            "tokens": words.encode_words(own),
            "characters": spellings(letters, own, 5),
            "tags": [int(word == "Ada") for word in own],
        }
        for own in sentences
    ]
    metadata = {
        "vocabulary": words.to_json(),
        "character_vocabulary": letters.to_json(),
        "tags": ["O", "B-person"],
    }
    dataset = write(schema, metadata, rows)
    task = task_from_dataset(TaggingConfig(characters="characters"), schema, metadata)
    return Case(dataset, task, {"words": ["we", "met", "Eve"]})


def translation(write: Write) -> Case:
    texts = ["ab", "b", "abba"]
    letters = build_vocabulary("characters", texts)
    schema = SequenceSchema((Column("tokens", letters.dtype), Column("target", "string", axis="sequence")))
    metadata = {"vocabulary": letters.to_json(), "target_vocabulary": letters.to_json()}
    dataset = write(schema, metadata, [{"tokens": letters.encode(text), "target": text[::-1]} for text in texts])
    task = task_from_dataset(TranslationConfig(longest=8, beams=2), schema, metadata)
    return Case(dataset, task, {"text": "ab"}, ModelConfig(cell="gru", hidden_size=6, attention="additive"))


def transcription(write: Write) -> Case:
    letters = build_vocabulary("characters", ["ab"])
    schema = SequenceSchema((Column("values", "float32", width=2), Column("target", "string", axis="sequence")))
    rng = np.random.default_rng(0)
    rows = [{"values": rng.normal(size=(6 + n, 2)), "target": text} for n, text in enumerate(["ab", "b", "aab"])]
    metadata = {"target_vocabulary": letters.to_json()}
    task = task_from_dataset(TranscriptionConfig(stack=2, beams=2), schema, metadata)
    return Case(write(schema, metadata, rows), task, {"values": [[0.5, 1.0], [0.1, 0.2], [0.3, 0.1]]})


TEXT_CASES = {"tagging": tagging, "translation": translation, "transcription": transcription}
