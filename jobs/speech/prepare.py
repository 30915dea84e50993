"""Write the census recordings AN4 (Carnegie Mellon, 1991), as the mel cepstra it comes with, as OUT/train and OUT/test."""

import argparse
import csv
import sys
from pathlib import Path

import numpy as np

from recurra.data.dataset import Dataset
from recurra.data.schema import Column, SequenceSchema
from recurra.data.vocabulary import Vocabulary, build_vocabulary
from recurra.data.write import DatasetWriter
from recurra.errors import NotFoundError, RecurraError


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--source", type=Path, required=True, help="directory of train.npz, train.tsv, test.npz, test.tsv"
    )
    parser.add_argument("--out", required=True, help="such as s3://recurra/datasets/an4 or file:///tmp/an4")
    arguments = parser.parse_args()
    texts = {split: read_texts(arguments.source / f"{split}.tsv") for split in ("train", "test")}
    known = list(texts["train"].values())
    vocabulary = build_vocabulary("characters", known)
    for split, own in texts.items():
        write(f"{arguments.out.rstrip('/')}/{split}", arguments.source / f"{split}.npz", own, vocabulary, known)


def read_texts(path: Path) -> dict[str, str]:
    """What is said in each recording, in capitals."""
    with path.open(encoding="utf-8", newline="") as file:
        return {row["id"]: row["text"].strip().upper() for row in csv.DictReader(file, delimiter="\t")}


def write(url: str, features: Path, texts: dict[str, str], vocabulary: Vocabulary, known: list[str]) -> None:
    with np.load(features) as frames:
        width = frames[next(iter(texts))].shape[1]
        schema = SequenceSchema((Column("values", "float32", width=width), Column("target", "string", axis="sequence")))
        metadata = {"target_vocabulary": vocabulary.to_json(), "language_model_texts": known}
        try:
            print(f"{url} already holds {Dataset.open(url).sequences} recordings and is left as it is.")
        except NotFoundError:
            with DatasetWriter(url, schema, metadata) as writer:
                for name, text in texts.items():
                    writer.write({"values": frames[name], "target": text})
            print(f"{url}: {len(texts)} recordings, {width} cepstra a frame")


if __name__ == "__main__":
    try:
        main()
    except (RecurraError, OSError) as exc:
        sys.exit(str(exc))
