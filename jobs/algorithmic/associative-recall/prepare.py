"""Write random sequences of the NTM paper's associative recall problem as two datasets, OUT/train and OUT/eval."""

import argparse
import sys

from recurra.errors import RecurraError
from recurra.tasks.problems.dataset import write_problems
from recurra.tasks.problems.recall import AssociativeRecall


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", required=True, help="such as s3://recurra/datasets/recall or file:///tmp/recall")
    parser.add_argument("--sequences", type=int, default=34_000, help="training sequences")
    parser.add_argument(
        "--easier",
        type=int,
        nargs="*",
        default=[2000, 6000, 4000, 4000],
        help="training sequences of 2, 2 to 3, 2 to 4, ... items that stand before the others",
    )
    parser.add_argument("--eval-sequences", type=int, default=1000)
    parser.add_argument("--width", type=int, default=6, help="bits of a vector")
    parser.add_argument("--item", type=int, default=3, help="vectors of an item")
    parser.add_argument("--most", type=int, default=6, help="items of the longest training sequence")
    options = parser.parse_args()
    out, most = options.out.rstrip("/"), options.most
    problem = AssociativeRecall(width=options.width, item=options.item)
    easier = [(count, [(2, min(items, most))]) for items, count in enumerate(options.easier, 2)]
    print(write_problems(f"{out}/train", problem, options.sequences, [(2, most)], seed=0, easier=easier))
    print(write_problems(f"{out}/eval", problem, options.eval_sequences, [(most, most)], seed=1))


if __name__ == "__main__":
    try:
        main()
    except RecurraError as exc:
        sys.exit(str(exc))
