"""Write the HDFS log keys of DeepLog as two datasets of sessions: OUT/train (normal) and OUT/test."""

import argparse
import sys
from pathlib import Path

import numpy as np

from recurra.data.dataset import Dataset
from recurra.data.schema import Column, SequenceSchema
from recurra.data.write import DatasetWriter
from recurra.errors import NotFoundError, RecurraError

SCHEMA = SequenceSchema(
    (
        Column("events", "uint8"),
        Column("anomalous", "uint8", axis="sequence"),
        Column("calibrates", "uint8", axis="sequence"),
    )
)
KEYS = 29
"""Log keys are 1 to 29; one more event says that the session is over."""
EVENTS = [f"E{key}" for key in range(1, KEYS + 1)] + ["end"]
TRAIN, CALIBRATION = 0.55, 0.2
"""Shares of the normal sessions; the rest tests. The published test file of normal sessions is not at hand."""
SPLIT_SEED = 2017


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--source", type=Path, required=True, help="directory of hdfs_train and hdfs_test_abnormal")
    parser.add_argument("--out", required=True, help="such as s3://recurra/datasets/logs or file:///tmp/logs")
    arguments = parser.parse_args()
    normal = sessions(arguments.source / "hdfs_train")
    order = np.random.default_rng(SPLIT_SEED).permutation(len(normal))
    first, second = int(TRAIN * len(normal)), int((TRAIN + CALIBRATION) * len(normal))
    test = [(normal[index], 0, int(place < second)) for place, index in enumerate(order) if place >= first]
    test += [(session, 1, 0) for session in sessions(arguments.source / "hdfs_test_abnormal")]
    out = arguments.out.rstrip("/")
    write(f"{out}/train", [(normal[index], 0, 0) for index in order[:first]])
    write(f"{out}/test", test)


def sessions(file: Path) -> list[np.ndarray]:
    """The events of each line, which is one block's log, with the end behind them."""
    lines = file.read_text(encoding="utf-8").splitlines()
    return [np.array([*(int(key) - 1 for key in line.split()), KEYS], np.uint8) for line in lines if line.strip()]


def write(url: str, rows: list[tuple[np.ndarray, int, int]]) -> None:
    try:
        print(f"{url} already holds {Dataset.open(url).sequences} sessions and is left as it is.")
    except NotFoundError:
        with DatasetWriter(url, SCHEMA, {"events": EVENTS}) as writer:
            for events, anomalous, calibrates in rows:
                writer.write({"events": events, "anomalous": anomalous, "calibrates": calibrates})
        print(f"{url}: {len(rows)} sessions, {sum(anomalous for _, anomalous, _ in rows)} of them anomalous")


if __name__ == "__main__":
    try:
        main()
    except (RecurraError, OSError) as exc:
        sys.exit(str(exc))
