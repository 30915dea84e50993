"""Write random sequences of the NTM paper's repeat copy problem as two datasets, OUT/train and OUT/eval. Of those that are
trained on, a share is as long as they come, and a share has few different vectors."""

import argparse
import sys

import numpy as np

from recurra.errors import RecurraError
from recurra.tasks.problems.base import Example
from recurra.tasks.problems.copying import RepeatCopy
from recurra.tasks.problems.dataset import write_problems


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", required=True, help="such as s3://recurra/datasets/repeat-copy or file:///tmp/repeat")
    parser.add_argument("--sequences", type=int, default=64_000, help="training sequences")
    parser.add_argument("--eval-sequences", type=int, default=1000)
    parser.add_argument("--alike", type=float, default=0.5, help="share of the sequences with few different vectors")
    parser.add_argument("--full", type=float, default=0.2, help="share of the sequences that are as long as they come")
    parser.add_argument("--width", type=int, default=8, help="bits of a vector")
    parser.add_argument("--longest", type=int, default=10, help="vectors of the longest training sequence")
    parser.add_argument("--most", type=int, default=10, help="repeats, at most")
    options = parser.parse_args()
    out, longest, most = options.out.rstrip("/"), options.longest, options.most
    problem = RepeatCopy(width=options.width, most=most)

    def draw(generator: np.random.Generator, *sizes: int) -> Example:
        sizes = (longest, most) if generator.random() < options.full else sizes
        alike = generator.random() < options.alike
        return problem.draw_alike(generator, *sizes) if alike else problem.draw(generator, *sizes)

    print(write_problems(f"{out}/train", problem, options.sequences, [(1, longest), (1, most)], seed=0, draw=draw))
    print(write_problems(f"{out}/eval", problem, options.eval_sequences, [(longest, longest), (most, most)], seed=1))


if __name__ == "__main__":
    try:
        main()
    except RecurraError as exc:
        sys.exit(str(exc))
