"""Write random sequences of the NTM paper's copy problem as two datasets, OUT/train and OUT/eval."""

import argparse
import sys

from recurra.data.dataset import Dataset
from recurra.data.write import DatasetWriter
from recurra.errors import NotFoundError, RecurraError
from recurra.tasks.algorithms import copy_examples, copy_schema


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", required=True, help="such as s3://recurra/datasets/copy or file:///tmp/copy")
    parser.add_argument("--sequences", type=int, default=200_000, help="training sequences")
    parser.add_argument("--width", type=int, default=8, help="bits of a vector")
    parser.add_argument("--longest", type=int, default=20, help="vectors of the longest training sequence")
    parser.add_argument("--eval-length", type=int, help="vectors of every evaluation sequence; default: as in training")
    arguments = parser.parse_args()
    width, longest, held = arguments.width, arguments.longest, arguments.eval_length
    out = arguments.out.rstrip("/")
    write(f"{out}/train", arguments.sequences, width=width, shortest=1, longest=longest, seed=0)
    write(f"{out}/eval", 1000, width=width, shortest=held or 1, longest=held or longest, seed=1)


def write(url: str, count: int, *, width: int, shortest: int, longest: int, seed: int) -> None:
    try:
        print(f"{url} already holds {Dataset.open(url).sequences} sequences and is left as it is.")
    except NotFoundError:
        with DatasetWriter(url, copy_schema(width)) as writer:
            for example in copy_examples(count, width=width, shortest=shortest, longest=longest, seed=seed):
                writer.write(example)
        print(f"{url}: {count} sequences of {shortest} to {longest} vectors")


if __name__ == "__main__":
    try:
        main()
    except RecurraError as exc:
        sys.exit(str(exc))
