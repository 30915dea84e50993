"""Write the sentence polarity data of Pang and Lee (2005) as two datasets of words, OUT/train and OUT/test."""

import argparse
import sys
from pathlib import Path

import numpy as np

from recurra.data.dataset import Dataset
from recurra.data.schema import Column, SequenceSchema
from recurra.data.vocabulary import Vocabulary, build_vocabulary
from recurra.data.write import DatasetWriter
from recurra.errors import NotFoundError, RecurraError

LABELS = {"negative": "rt-polarity.neg", "positive": "rt-polarity.pos"}
TEST_SENTENCES = 1777
"""Of each label: 3,554 test and 7,108 training sentences, as in Text GCN (Yao et al. 2019, arXiv 1809.05679)."""
SPLIT_SEED = 2005


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--source", type=Path, required=True, help="directory of rt-polarity.neg and rt-polarity.pos")
    parser.add_argument("--out", required=True, help="such as s3://recurra/datasets/sentiment or file:///tmp/sentiment")
    arguments = parser.parse_args()
    train: list[tuple[str, int]] = []
    test: list[tuple[str, int]] = []
    generator = np.random.default_rng(SPLIT_SEED)
    for label, name in enumerate(LABELS.values()):
        lines = (arguments.source / name).read_text(encoding="latin-1").splitlines()
        order = generator.permutation(len(lines))
        test += [(lines[index], label) for index in order[:TEST_SENTENCES]]
        train += [(lines[index], label) for index in order[TEST_SENTENCES:]]
    vocabulary = build_vocabulary("words", (text for text, _ in train), min_count=2)
    write(f"{arguments.out.rstrip('/')}/train", train, vocabulary)
    write(f"{arguments.out.rstrip('/')}/test", test, vocabulary)


def write(url: str, sentences: list[tuple[str, int]], vocabulary: Vocabulary) -> None:
    schema = SequenceSchema((Column("tokens", vocabulary.dtype), Column("label", "int32", axis="sequence")))
    metadata = {"vocabulary": vocabulary.to_json(), "labels": list(LABELS)}
    try:
        print(f"{url} already holds {Dataset.open(url).sequences} sentences and is left as it is.")
    except NotFoundError:
        with DatasetWriter(url, schema, metadata) as writer:
            for text, label in sentences:
                writer.write({"tokens": vocabulary.encode(text), "label": label})
        print(f"{url}: {len(sentences)} sentences, {vocabulary.size} words")


if __name__ == "__main__":
    try:
        main()
    except (RecurraError, OSError) as exc:
        sys.exit(str(exc))
