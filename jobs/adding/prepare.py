"""Write sequences of the adding problem (Hochreiter and Schmidhuber 1997) as two datasets, OUT/train and OUT/eval.

A step is a number from 0 to 1 and a mark. One of the first half's steps and one of the second half's are marked; what is
asked for is the sum of the two numbers. Always answering 1 has a mean squared error of 1/6 = 0.167.
"""

import argparse
import sys

import numpy as np

from recurra.data.dataset import Dataset
from recurra.data.schema import Column, SequenceSchema
from recurra.data.write import DatasetWriter
from recurra.errors import NotFoundError, RecurraError

SCHEMA = SequenceSchema((Column("values", "float32", width=2), Column("target", "float32", axis="sequence")))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", required=True, help="such as s3://recurra/datasets/adding or file:///tmp/adding")
    parser.add_argument("--sequences", type=int, default=100_000, help="training sequences")
    parser.add_argument("--length", type=int, default=400, help="time steps of every sequence")
    arguments = parser.parse_args()
    if arguments.length < 2:
        parser.error(f"--length is {arguments.length}. Give at least 2: one marked step in each half.")
    out = arguments.out.rstrip("/")
    write(f"{out}/train", arguments.sequences, arguments.length, seed=0)
    write(f"{out}/eval", 1000, arguments.length, seed=1)


def write(url: str, count: int, length: int, *, seed: int) -> None:
    try:
        print(f"{url} already holds {Dataset.open(url).sequences} sequences and is left as it is.")
        return
    except NotFoundError:
        pass
    generator = np.random.default_rng(seed)
    with DatasetWriter(url, SCHEMA) as writer:
        for _ in range(count):
            values_TD = np.zeros((length, 2), np.float32)
            values_TD[:, 0] = generator.random(length, np.float32)
            marked = [generator.integers(length // 2), generator.integers(length // 2, length)]
            values_TD[marked, 1] = 1
            writer.write({"values": values_TD, "target": values_TD[marked, 0].sum()})
    print(f"{url}: {count} sequences of {length} steps")


if __name__ == "__main__":
    try:
        main()
    except RecurraError as exc:
        sys.exit(str(exc))
