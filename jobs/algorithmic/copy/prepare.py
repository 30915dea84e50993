"""Write random sequences of the NTM paper's copy problem as two datasets, OUT/train and OUT/eval."""

import argparse
import sys

from recurra.errors import RecurraError
from recurra.tasks.problems.copying import Copy
from recurra.tasks.problems.dataset import write_problems


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", required=True, help="such as s3://recurra/datasets/copy or file:///tmp/copy")
    parser.add_argument("--sequences", type=int, default=40_000, help="training sequences")
    parser.add_argument("--eval-sequences", type=int, default=500)
    parser.add_argument("--width", type=int, default=8, help="bits of a vector")
    parser.add_argument("--longest", type=int, default=20, help="vectors of the longest training sequence")
    parser.add_argument("--eval-length", type=int, help="vectors of every evaluation sequence; default: the longest")
    options = parser.parse_args()
    out, held = options.out.rstrip("/"), options.eval_length or options.longest
    problem = Copy(width=options.width)
    print(write_problems(f"{out}/train", problem, options.sequences, [(1, options.longest)], seed=0))
    print(write_problems(f"{out}/eval", problem, options.eval_sequences, [(held, held)], seed=1))


if __name__ == "__main__":
    try:
        main()
    except RecurraError as exc:
        sys.exit(str(exc))
