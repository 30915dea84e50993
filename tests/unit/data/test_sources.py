from __future__ import annotations

import json

import numpy as np
import pytest

from recurra.data.dataset import Dataset
from recurra.data.records import Source
from recurra.data.schema import Column
from recurra.data.sources import Field, Recipe, read_examples, survey, write_source
from recurra.data.vocabulary import ByteVocabulary, Vocabulary
from recurra.errors import ConfigError, DataError


def examples(recipe, *records):
    named = [(f"r{number}", record) for number, record in enumerate(records)]
    known = survey(lambda: iter(named), recipe)
    return known, list(read_examples(named, recipe, known))


def test_text_and_labels(local_url, tmp_path):
    """The road of a classifier: a JSONL file to a dataset that a task understands."""
    rows = [{"review": "good film", "sentiment": "pos"}, {"review": "bad film", "sentiment": "neg"}]
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    recipe = Recipe((Field("tokens", ("review",), "text"), Field("label", ("sentiment",), "label")), vocabulary="words")

    write_source(local_url, Source(tmp_path / "a.jsonl"), recipe)

    dataset = Dataset.open(local_url)
    vocabulary = Vocabulary.from_json(dataset.metadata["vocabulary"])
    assert dataset.metadata["labels"] == ["neg", "pos"]
    assert [vocabulary.decode(row["tokens"]) for row in dataset] == ["good film", "bad film"]
    assert [row["label"] for row in dataset] == [1, 0]
    assert dataset.schema.columns == (Column("tokens", "uint8"), Column("label", "int32", "sequence"))


def test_progress_is_told(local_url, tmp_path):
    (tmp_path / "a.txt").write_text("x\n" * 2500)
    told = []

    write_source(local_url, Source(tmp_path / "a.txt"), Recipe((Field("tokens", ("text",), "text"),)), told.append)

    assert told == [1000, 2000]


def test_a_document_begins_with_its_marker():
    """Language models learn where documents begin."""
    _, (row,) = examples(Recipe((Field("tokens", ("text",), "text", bos=True),)), {"text": "ab"})

    assert row["tokens"].tolist() == [0, 97, 98]
    assert row["tokens"].dtype == np.uint8


def test_rows_of_a_table_become_series():
    """The usual shape of sales data: one row a day and shop."""
    recipe = Recipe((Field("values", ("sold", "price"), "series"), Field("shop", ("shop",), "string")), group_by="shop")

    known, rows = examples(
        recipe,
        {"shop": "a", "sold": "1", "price": "2.5"},
        {"shop": "b", "sold": "7", "price": "1"},
        {"shop": "a", "sold": "3", "price": "2"},
    )

    assert known.schema.columns[0] == Column("values", "float32", "time", 2)
    assert [(row["shop"], row["values"].tolist()) for row in rows] == [("a", [[1, 2.5], [3, 2]]), ("b", [[7, 1]])]


def test_a_series_in_one_field():
    known, rows = examples(Recipe((Field("values", ("x",), "series"),)), {"x": [1, 2]}, {"x": "3 4.5"})

    assert known.schema.columns == (Column("values", "float32"),)
    assert [row["values"].tolist() for row in rows] == [[1, 2], [3, 4.5]]


def test_a_list_of_vectors_is_a_series():
    known, _ = examples(Recipe((Field("values", ("x",), "series"),)), {"x": [[1, 2, 3], [4, 5, 6]]})

    assert known.schema.columns == (Column("values", "float32", "time", 3),)


def test_samples_are_cut_into_frames():
    """A step of 10 ms instead of one sample: an RNN cannot look back 16000 steps."""
    recipe = Recipe((Field("values", ("samples",), "series", frame=2),))

    known, rows = examples(recipe, {"samples": np.array([1, 2, 3], np.float32)})

    assert known.schema.columns == (Column("values", "float32", "time", 2),)
    assert rows[0]["values"].tolist() == [[1, 2], [3, 0]]


def test_stereo_is_mixed_before_it_is_cut():
    _, rows = examples(Recipe((Field("v", ("s",), "series", frame=2),)), {"s": np.array([[1.0, 3.0], [5.0, 7.0]])})

    assert rows[0]["v"].tolist() == [[2, 6]]


def test_tokens_numbers_and_strings():
    recipe = Recipe(
        (
            Field("tokens", ("ids",), "tokens", dtype="uint16"),
            Field("place", ("lat", "lon"), "number"),
            Field("weight", ("w",), "number"),
            Field("name", ("n",), "string"),
        )
    )

    known, (row,) = examples(recipe, {"ids": "5 6", "lat": "1.5", "lon": 2, "w": 3, "n": "x"})

    assert [column.dtype for column in known.schema.columns] == ["uint16", "float32", "float32", "string"]
    assert row["tokens"].tolist() == [5, 6]
    assert row["place"].tolist() == [1.5, 2]
    assert (row["weight"], row["name"]) == (3, "x")


def test_labels_that_are_numbers_are_sorted_as_numbers():
    known, _ = examples(
        Recipe((Field("t", ("t",), "text"), Field("label", ("y",), "label"))), *({"t": "a", "y": n} for n in (10, 9, 2))
    )

    assert known.labels == ("2", "9", "10")


def test_given_vocabulary_and_labels_are_kept():
    """The validation split is written with those of the training split."""
    recipe = Recipe(
        (Field("tokens", ("t",), "text"), Field("label", ("y",), "label")),
        vocabulary=ByteVocabulary(),
        labels=("b", "a"),
    )

    known, rows = examples(recipe, {"t": "x", "y": "a"})

    assert known.metadata(recipe) == {"vocabulary": {"kind": "bytes"}, "labels": ["b", "a"]}
    assert rows[0]["label"] == 1


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"txt": "x", "y": "a"}, "r1 has no field 'text', or nothing in it. Did you mean 'txt'"),
        ({"text": 5, "y": "a"}, "r1: field 'text' is int, not text"),
        ({"text": "x", "y": "c"}, "r1: field 'y' is 'c'; the labels are a, b"),
        ({"text": "x", "y": None}, "r1 has no field 'y'"),
    ],
)
def test_a_record_that_does_not_fit_is_named(record, message):
    recipe = Recipe((Field("tokens", ("text",), "text"), Field("label", ("y",), "label")), labels=("a", "b"))

    with pytest.raises(DataError, match=message):
        examples(recipe, {"text": "x", "y": "a"}, record)


@pytest.mark.parametrize("value", ["1 two", ["a"], {"x": 1}, [[1], [1, 2]]])
def test_a_series_that_is_none_is_named(value):
    with pytest.raises(DataError, match="r1: field 'x' holds .* which is no series"):
        examples(Recipe((Field("v", ("x",), "series"),)), {"x": [1]}, {"x": value})


def test_no_record_is_refused():
    with pytest.raises(DataError, match="holds no record"):
        examples(Recipe((Field("v", ("x",), "series"),)))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"fields": (), "role": "text"}, "names no field"),
        ({"fields": ("a", "b"), "role": "text"}, "comes from one field"),
        ({"fields": ("a",), "role": "text", "frame": 2}, "has frame 2"),
        ({"fields": ("a",), "role": "label", "bos": True}, "Only text has"),
    ],
)
def test_a_mapping_that_means_nothing_is_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        Field("column", **settings)
