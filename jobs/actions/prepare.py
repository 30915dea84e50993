"""Write MSR Action3D (skeletons of people who act, Li, Zhang, Liu 2010) as OUT/train and OUT/test, split by person."""

import argparse
import csv
import sys
from pathlib import Path

import numpy as np

from recurra.data.dataset import Dataset
from recurra.data.schema import Column, SequenceSchema
from recurra.data.write import DatasetWriter
from recurra.errors import NotFoundError, RecurraError

JOINTS = 20
HIP = 6
"""Joint that all others are seen from."""
SCHEMA = SequenceSchema((Column("frames", "float32", width=2 * 3 * JOINTS), Column("label", "int32", axis="sequence")))
BROKEN = {"a13_s09_e02", "a13_s09_e03"}
"""One is all zeros, most of the other."""
COPIES = 6
"""Of each training sequence, each turned, stretched and cut a little differently."""
SEED = 2010


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--source", type=Path, required=True, help="directory of skeletons.npz and meta.tsv")
    parser.add_argument("--out", required=True, help="such as s3://recurra/datasets/actions or file:///tmp/actions")
    arguments = parser.parse_args()
    names, captions = read_labels(arguments.source)
    skeletons = np.load(arguments.source / "skeletons.npz")
    generator = np.random.default_rng(SEED)
    train, test = [], []
    for row in read_table(arguments.source / "meta.tsv"):
        if row["id"] in BROKEN:
            continue
        joints = clean(skeletons[row["id"]])
        label = names.index(row["name"])
        if int(row["subject"]) % 2:
            train.append((features(joints), label))
            train += [(features(varied(joints, generator)), label) for _ in range(COPIES)]
        else:
            test.append((features(joints), label))
    metadata = {"labels": names, "captions": captions}
    write(f"{arguments.out.rstrip('/')}/train", train, metadata)
    write(f"{arguments.out.rstrip('/')}/test", test, metadata)


def read_table(file: Path) -> list[dict[str, str]]:
    with file.open(encoding="utf-8", newline="") as text:
        return list(csv.DictReader(text, delimiter="\t"))


def read_labels(source: Path) -> tuple[list[str], dict[str, list[str]]]:
    """Names of the actions in the order of their numbers, and the sentences for each."""
    rows = read_table(source / "captions_by_class.tsv")
    captions: dict[str, list[str]] = {}
    for row in sorted(rows, key=lambda row: int(row["action"])):
        captions.setdefault(row["name"], []).append(row["caption"])
    return list(captions), captions


def clean(joints: np.ndarray) -> np.ndarray:
    """[T, 20, 3] without frames in which nobody was seen, seen from the hip, in units of the body's size."""
    joints = joints[np.abs(joints).sum((1, 2)) > 0].astype(np.float64)
    joints = joints - joints[:, HIP : HIP + 1]
    return joints / np.median(np.linalg.norm(joints, axis=2).max(1))


def varied(joints: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """The same motion by another body, from another side, at another speed, begun a little later."""
    angle = generator.uniform(-0.4, 0.4)
    turn = np.array([[np.cos(angle), 0, np.sin(angle)], [0, 1, 0], [-np.sin(angle), 0, np.cos(angle)]])
    joints = joints @ turn.T * generator.uniform(0.9, 1.1, 3)
    first = generator.uniform(0, 0.1) * len(joints)
    last = len(joints) - 1 - generator.uniform(0, 0.1) * len(joints)
    places = np.linspace(first, last, max(int(len(joints) * generator.uniform(0.75, 1.25)), 8))
    low = np.floor(places).astype(int)
    high = np.minimum(low + 1, len(joints) - 1)
    part = (places - low)[:, None, None]
    return joints[low] * (1 - part) + joints[high] * part + generator.normal(0, 0.01, (len(places), JOINTS, 3))


def features(joints: np.ndarray) -> np.ndarray:
    """[T, 120] where each joint is, and how it moved in the last three frames."""
    moved = joints - joints[np.maximum(np.arange(len(joints)) - 3, 0)]
    return np.concatenate([joints, 3 * moved], axis=1).reshape(len(joints), -1).astype(np.float32)


def write(url: str, rows: list[tuple[np.ndarray, int]], metadata: dict[str, object]) -> None:
    try:
        print(f"{url} already holds {Dataset.open(url).sequences} sequences and is left as it is.")
    except NotFoundError:
        with DatasetWriter(url, SCHEMA, metadata) as writer:
            for frames, label in rows:
                writer.write({"frames": frames, "label": label})
        print(f"{url}: {len(rows)} sequences, {sum(len(frames) for frames, _ in rows):,} frames")


if __name__ == "__main__":
    try:
        main()
    except (RecurraError, OSError) as exc:
        sys.exit(str(exc))
