"""Write Bach's chorales (JSB, quarter notes: Boulanger-Lewandowski et al. 2012) as OUT/train, OUT/valid and OUT/test."""

import argparse
import json
import sys
from pathlib import Path

import numpy as np

from recurra.data.dataset import Dataset
from recurra.data.schema import Column, SequenceSchema
from recurra.data.write import DatasetWriter
from recurra.errors import NotFoundError, RecurraError

LOWEST, NOTES = 21, 88
"""A piano's keys, as in the published results."""
SCHEMA = SequenceSchema((Column("notes", "uint8", width=NOTES),))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--source", type=Path, required=True, help="directory of jsb-chorales-quarter.json")
    parser.add_argument("--out", required=True, help="such as s3://recurra/datasets/chorales or file:///tmp/chorales")
    arguments = parser.parse_args()
    pieces = json.loads((arguments.source / "jsb-chorales-quarter.json").read_text(encoding="utf-8"))
    for split in ("train", "valid", "test"):
        write(f"{arguments.out.rstrip('/')}/{split}", [piano_roll(piece) for piece in pieces[split]])


def piano_roll(steps: list[list[int]]) -> np.ndarray:
    """[T, 88] 1 where a key is down."""
    roll = np.zeros((len(steps), NOTES), np.uint8)
    for index, notes in enumerate(steps):
        roll[index, np.array(notes, np.int64) - LOWEST] = 1
    return roll


def write(url: str, pieces: list[np.ndarray]) -> None:
    try:
        print(f"{url} already holds {Dataset.open(url).sequences} pieces and is left as it is.")
    except NotFoundError:
        with DatasetWriter(url, SCHEMA, {"lowest_note": LOWEST}) as writer:
            for piece in pieces:
                writer.write({"notes": piece})
        print(f"{url}: {len(pieces)} pieces, {sum(map(len, pieces)):,} steps")


if __name__ == "__main__":
    try:
        main()
    except (RecurraError, OSError) as exc:
        sys.exit(str(exc))
