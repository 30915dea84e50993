"""Write the sixty recordings of yes and no (OpenSLR 1), as log-mel energies of their sound, as OUT/train and OUT/test."""

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recurra.data.audio import FrontEnd
from recurra.data.dataset import Dataset
from recurra.data.records import Source
from recurra.data.schema import Column, SequenceSchema
from recurra.data.vocabulary import build_vocabulary
from recurra.data.write import DatasetWriter
from recurra.errors import DataError, NotFoundError, RecurraError

FRONT_END = FrontEnd(rate=8000, filters=20)
TRAINING = 31
"""Recordings to train on, in the order of their names; the others are for testing, as in Kaldi's recipe."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--source", type=Path, required=True, help="directory of 0_0_0_0_1_1_1_1.wav and the others")
    parser.add_argument("--out", required=True, help="such as s3://recurra/datasets/yesno or file:///tmp/yesno")
    arguments = parser.parse_args()
    records = list(Source(arguments.source, "wav").records())
    write(f"{arguments.out.rstrip('/')}/train", records[:TRAINING])
    write(f"{arguments.out.rstrip('/')}/test", records[TRAINING:])


def text_of(where: str) -> str:
    """The name of a recording is what it says: 1 is yes (ken), 0 is no (lo)."""
    marks = Path(where).stem.split("_")
    if not set(marks) <= {"0", "1"}:
        raise DataError(f"{where} is not named like 0_1_0_1_1_1_0_0.wav. Give the directory of the recordings alone.")
    return " ".join("yes" if mark == "1" else "no" for mark in marks)


def features_of(where: str, record: dict[str, Any]) -> NDArray[np.float32]:
    """Log-mel energies of a recording at the front end's own rate."""
    if record["rate"] != FRONT_END.rate:
        raise DataError(f"{where} has {record['rate']} samples a second, not {FRONT_END.rate}. Resample it.")
    return FRONT_END.features(record["samples"])


def write(url: str, records: list[tuple[str, dict[str, Any]]]) -> None:
    schema = SequenceSchema(
        (Column("values", "float32", width=FRONT_END.width), Column("target", "string", axis="sequence"))
    )
    vocabulary = build_vocabulary("words", ["yes no"])
    metadata = {"target_vocabulary": vocabulary.to_json(), "front_end": FRONT_END.to_json()}
    try:
        print(f"{url} already holds {Dataset.open(url).sequences} recordings and is left as it is.")
    except NotFoundError:
        with DatasetWriter(url, schema, metadata) as writer:
            for where, record in records:
                writer.write({"values": features_of(where, record), "target": text_of(where)})
        print(f"{url}: {len(records)} recordings, {FRONT_END.width} energies a frame")


if __name__ == "__main__":
    try:
        main()
    except (RecurraError, OSError) as exc:
        sys.exit(str(exc))
