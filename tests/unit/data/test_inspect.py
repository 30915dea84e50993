from __future__ import annotations

import json
from dataclasses import asdict
from itertools import pairwise

import numpy as np
import pytest

from recurra.data.dataset import Dataset
from recurra.data.inspect import inspect_dataset, length_bars, padding_waste, sample_row
from recurra.data.schema import Column, SequenceSchema
from recurra.data.vocabulary import ByteVocabulary
from recurra.data.write import DatasetWriter


@pytest.fixture
def reviews(local_url):
    schema = SequenceSchema(
        (Column("tokens", "uint8"), Column("x", "float32", width=2), Column("label", "int32", "sequence"))
    )
    vocabulary = ByteVocabulary()
    with DatasetWriter(local_url, schema, {"vocabulary": vocabulary.to_json(), "labels": ["neg", "pos"]}) as writer:
        for text in ("good", "a" * 1000, "bad"):
            tokens = vocabulary.encode(text)
            writer.write({"tokens": tokens, "x": np.zeros((len(tokens), 2)), "label": 1})
    return Dataset.open(local_url)


def test_a_report_says_what_is_there(reviews):
    report = inspect_dataset(reviews)

    assert (report.sequences, report.steps, report.shards, report.blocks) == (3, 1007, 1, 1)
    assert (report.shortest, report.median, report.longest) == (3, 4, 1000)
    assert report.metadata["vocabulary"] == "bytes, 256 ids"
    assert report.digest == reviews.digest
    assert [row["id"] for row in report.samples] == ["0", "1", "2"]


def test_a_report_is_plain_json(reviews):
    """`recurra data inspect --json` prints it as it is."""
    assert json.loads(json.dumps(asdict(inspect_dataset(reviews))))["sequences"] == 3


def test_a_sample_is_short_and_readable(reviews):
    row = sample_row(reviews, 0)

    assert row == {
        "id": "0",
        "tokens": "good",
        "x": "[[0.0, 0.0], [0.0, 0.0], [0.0, 0.0], [0.0, 0.0]] [4, 2]",
        "label": "1 (pos)",
    }
    assert all(len(value) <= 200 for value in sample_row(reviews, 1).values() if value.startswith("a"))


def test_bars_meet_and_count_everything():
    lengths = np.array([1, 1, 2, 50, 999, 1000], np.uint32)

    bars = length_bars(lengths)

    assert sum(bar.count for bar in bars) == 6
    assert all(left.high + 1 == right.low for left, right in pairwise(bars))
    assert (bars[0].low, bars[-1].high) == (1, 1000)


def test_bars_of_one_length():
    (bar,) = length_bars(np.full(5, 7, np.uint32))

    assert (bar.low, bar.high, bar.count) == (7, 7, 5)


def test_waste_says_why_buckets_are_worth_it(mixed):
    waste = {item.mode: item.share for item in padding_waste(mixed, mixed.lengths(), (16,))}

    assert waste["buckets"] < 0.1 < waste["random"]
    assert waste["lanes"] == waste["packed"] < 0.01
