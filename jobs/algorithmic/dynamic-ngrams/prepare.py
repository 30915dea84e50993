"""Write random sequences of the NTM paper's dynamic n-grams as two datasets, OUT/train and OUT/eval."""

import argparse
import sys

from recurra.errors import RecurraError
from recurra.tasks.problems.dataset import write_problems
from recurra.tasks.problems.ngrams import DynamicNgrams


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", required=True, help="such as s3://recurra/datasets/ngrams or file:///tmp/ngrams")
    parser.add_argument("--sequences", type=int, default=64_000, help="training sequences")
    parser.add_argument("--eval-sequences", type=int, default=1000)
    parser.add_argument("--context", type=int, default=5, help="bits that the next one depends on")
    parser.add_argument("--bits", type=int, default=200, help="bits of a sequence")
    options = parser.parse_args()
    out, sizes = options.out.rstrip("/"), [(options.bits, options.bits)]
    problem = DynamicNgrams(context=options.context)
    print(write_problems(f"{out}/train", problem, options.sequences, sizes, seed=0))
    print(write_problems(f"{out}/eval", problem, options.eval_sequences, sizes, seed=1))


if __name__ == "__main__":
    try:
        main()
    except RecurraError as exc:
        sys.exit(str(exc))
