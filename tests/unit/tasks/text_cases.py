"""Small tasks of text and speech, for the laws of every task."""

from __future__ import annotations

from recurra.data.schema import Column, SequenceSchema
from recurra.data.words import build_character_vocabulary, build_word_vocabulary, spellings
from recurra.tasks.build import task_from_dataset
from recurra.tasks.tagging import TaggingConfig

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


TEXT_CASES = {"tagging": tagging}
