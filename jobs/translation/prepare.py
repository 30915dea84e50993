"""Write the image captions of Multi30k (Elliott et al. 2016), English to German, as datasets OUT/train, OUT/val, OUT/test."""

import argparse
import sys
from itertools import chain
from pathlib import Path

from recurra.data.dataset import Dataset
from recurra.data.schema import Column, SequenceSchema
from recurra.data.vocabulary import Vocabulary, build_vocabulary
from recurra.data.write import DatasetWriter
from recurra.errors import DataError, NotFoundError, RecurraError

SPLITS = {"train": "train", "val": "val", "test": "test2016"}
SUBWORDS = 4000
"""Tokens of the one vocabulary that both languages share."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--source", type=Path, required=True, help="directory of train.en, train.de, val.en, ...")
    parser.add_argument("--out", required=True, help="such as s3://recurra/datasets/multi30k or file:///tmp/multi30k")
    arguments = parser.parse_args()
    pairs = {split: read_pairs(arguments.source / name) for split, name in SPLITS.items()}
    vocabulary = build_vocabulary("subwords", chain.from_iterable(pairs["train"]), max_size=SUBWORDS)
    for split in SPLITS:
        write(f"{arguments.out.rstrip('/')}/{split}", pairs[split], vocabulary)


def read_pairs(path: Path) -> list[tuple[str, str]]:
    """Lines of PATH.en beside those of PATH.de."""
    english, german = (
        path.with_suffix(f".{language}").read_text(encoding="utf-8").split("\n") for language in ("en", "de")
    )
    if len(english) != len(german):
        raise DataError(
            f"{path}.en has {len(english)} lines and {path}.de {len(german)}. Give files that belong together."
        )
    return [(one, other) for one, other in zip(english, german, strict=True) if one.strip() and other.strip()]


def write(url: str, pairs: list[tuple[str, str]], vocabulary: Vocabulary) -> None:
    schema = SequenceSchema((Column("tokens", vocabulary.dtype), Column("target", "string", axis="sequence")))
    metadata = {"vocabulary": vocabulary.to_json(), "target_vocabulary": vocabulary.to_json()}
    try:
        print(f"{url} already holds {Dataset.open(url).sequences} pairs and is left as it is.")
    except NotFoundError:
        with DatasetWriter(url, schema, metadata) as writer:
            for english, german in pairs:
                writer.write({"tokens": vocabulary.encode(english), "target": german})
        print(f"{url}: {len(pairs)} pairs, {vocabulary.size} subwords")


if __name__ == "__main__":
    try:
        main()
    except (RecurraError, OSError) as exc:
        sys.exit(str(exc))
