"""Write the series of the Numenta Anomaly Benchmark as OUT/train (the start of each) and OUT/test (each as a whole)."""

import argparse
import csv
import io
import json
import sys
import tarfile
from pathlib import Path

import numpy as np

from recurra.data.dataset import Dataset
from recurra.data.schema import Column, SequenceSchema
from recurra.data.write import DatasetWriter
from recurra.errors import NotFoundError, RecurraError

SCHEMA = SequenceSchema((Column("values", "float32"), Column("anomalous", "uint8"), Column("calibrates", "uint8")))
TRAIN, PROBATION = 0.10, 0.15
"""Shares of each series: the first is learned from; from there to the second the threshold is set. NAB scores what follows."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--source", type=Path, required=True, help="directory of nab_data.tar.gz and combined_windows.json"
    )
    parser.add_argument("--out", required=True, help="such as s3://recurra/datasets/machines or file:///tmp/machines")
    arguments = parser.parse_args()
    windows = json.loads((arguments.source / "combined_windows.json").read_text(encoding="utf-8"))
    train, test = [], []
    for name, (times, values) in series(arguments.source / "nab_data.tar.gz").items():
        marks = np.zeros(len(values), np.uint8)
        for begin, end in windows.get(name, []):
            marks[(times >= begin[:19]) & (times <= end[:19])] = 1
        first, second = int(TRAIN * len(values)), int(PROBATION * len(values))
        aside = np.zeros(len(values), np.uint8)
        aside[first:second] = 1
        train.append({"values": values[:first], "anomalous": marks[:first], "calibrates": aside[:first]})
        # What was learned from is neither measured nor calibrated on: it only leads up to the rest.
        skipped = np.where(np.arange(len(values)) < first, 2, aside).astype(np.uint8)
        test.append({"values": values, "anomalous": marks, "calibrates": skipped})
    write(f"{arguments.out.rstrip('/')}/train", train)
    write(f"{arguments.out.rstrip('/')}/test", test)


def series(file: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Times and values by `folder/name.csv`, as the labels name them; series of the folder for made-up ones included."""
    found = {}
    with tarfile.open(file) as archive:
        for member in sorted(archive.getnames()):
            handle = archive.extractfile(member) if member.endswith(".csv") else None
            if handle is None:
                continue
            rows = list(csv.DictReader(io.TextIOWrapper(handle, encoding="utf-8")))
            times = np.array([row["timestamp"][:19] for row in rows])
            found["/".join(member.split("/")[-2:])] = (
                times,
                np.array([float(row["value"]) for row in rows], np.float32),
            )
    return found


def write(url: str, rows: list[dict[str, np.ndarray]]) -> None:
    try:
        print(f"{url} already holds {Dataset.open(url).sequences} series and is left as it is.")
    except NotFoundError:
        with DatasetWriter(url, SCHEMA, {}) as writer:
            for row in rows:
                writer.write(row)
        print(f"{url}: {len(rows)} series, {sum(len(row['values']) for row in rows):,} steps")


if __name__ == "__main__":
    try:
        main()
    except (RecurraError, OSError) as exc:
        sys.exit(str(exc))
