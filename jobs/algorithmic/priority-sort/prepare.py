"""Write random sequences of the NTM paper's priority sort as two datasets, OUT/train and OUT/eval."""

import argparse
import sys

from recurra.errors import RecurraError
from recurra.tasks.problems.dataset import write_problems
from recurra.tasks.problems.sorting import PrioritySort


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", required=True, help="such as s3://recurra/datasets/sort or file:///tmp/sort")
    parser.add_argument("--sequences", type=int, default=100_000, help="training sequences")
    parser.add_argument("--eval-sequences", type=int, default=500)
    parser.add_argument("--width", type=int, default=8, help="bits of a vector")
    parser.add_argument("--fewest", type=int, default=2, help="vectors of the shortest training sequence")
    parser.add_argument("--vectors", type=int, default=20, help="vectors of the longest; 80 %% are to be sorted")
    options = parser.parse_args()
    out, most = options.out.rstrip("/"), options.vectors
    problem = PrioritySort(width=options.width)
    print(write_problems(f"{out}/train", problem, options.sequences, [(options.fewest, most)], seed=0))
    print(write_problems(f"{out}/eval", problem, options.eval_sequences, [(most, most)], seed=1))


if __name__ == "__main__":
    try:
        main()
    except RecurraError as exc:
        sys.exit(str(exc))
