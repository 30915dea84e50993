"""Write random sequences of the NTM paper's associative recall problem: OUT/train, OUT/eval, and for the curriculum OUT/items-3,
OUT/items-4 and so on, with 2 up to so many items. In a share of those that are trained on, items are alike."""

import argparse
import sys

import numpy as np

from recurra.errors import RecurraError
from recurra.tasks.problems.base import Example
from recurra.tasks.problems.dataset import write_problems
from recurra.tasks.problems.recall import AssociativeRecall


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", required=True, help="such as s3://recurra/datasets/recall or file:///tmp/recall")
    parser.add_argument("--sequences", type=int, default=20_000, help="training sequences")
    parser.add_argument("--easier", type=int, default=2000, help="sequences of each dataset of the curriculum")
    parser.add_argument("--eval-sequences", type=int, default=1500)
    parser.add_argument("--alike", type=float, default=0.5, help="share of the sequences whose items share vectors")
    parser.add_argument("--width", type=int, default=6, help="bits of a vector")
    parser.add_argument("--item", type=int, default=3, help="vectors of an item")
    parser.add_argument("--most", type=int, default=10, help="items of the longest training sequence")
    options = parser.parse_args()
    out, most = options.out.rstrip("/"), options.most
    problem = AssociativeRecall(width=options.width, item=options.item)

    def draw(generator: np.random.Generator, items: int) -> Example:
        alike = generator.random() < options.alike
        return problem.draw_alike(generator, items) if alike else problem.draw(generator, items)

    print(write_problems(f"{out}/train", problem, options.sequences, [(2, most)], seed=0, draw=draw))
    print(write_problems(f"{out}/eval", problem, options.eval_sequences, [(most, most)], seed=1))
    for items in range(3, most):
        print(write_problems(f"{out}/items-{items}", problem, options.easier, [(2, items)], seed=items, draw=draw))


if __name__ == "__main__":
    try:
        main()
    except RecurraError as exc:
        sys.exit(str(exc))
