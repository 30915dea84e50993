"""Bits that a published model pays on problems of given sizes, those beyond its training above all.

Sizes are those of the problem: 20 for copy, 10x20 for repeat copy (vectors x repeats), items, bits, vectors.
"""

import argparse
import sys

from recurra.errors import RecurraError
from recurra.registry.loading import load_model
from recurra.registry.registry import Registry
from recurra.tasks.algorithmic import AlgorithmicTask
from recurra.training.generalisation import metrics_at


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="name, name@alias or name@digest")
    parser.add_argument("sizes", nargs="+", help="such as 20 50 120, or 10x10 20x10")
    parser.add_argument("--registry", default="s3://recurra/registry")
    parser.add_argument("--sequences", type=int, default=2000, help="of each size")
    options = parser.parse_args()
    loaded = load_model(Registry(options.registry), options.model)
    if not isinstance(loaded.task, AlgorithmicTask):
        sys.exit(f"{options.model} is a {loaded.task.kind}, not an algorithmic task.")
    known = " x ".join(loaded.task.problem.sizes)
    print(f"{known:>20} {'bits a sequence':>16} {'wrong bits':>11} {'solved':>7}")
    for text in options.sizes:
        sizes = [int(part) for part in text.split("x")]
        if len(sizes) != len(loaded.task.problem.sizes):
            sys.exit(f"{text} is not a size of {loaded.task.problem.name}: write {known}.")
        found = metrics_at(loaded.task, loaded.model, sizes, sequences=options.sequences, seed=2)
        print(f"{text:>20} {found['bits_per_sequence']:16.3f} {found['wrong_bits']:11.3f} {found['solved']:7.1%}")


if __name__ == "__main__":
    try:
        main()
    except RecurraError as exc:
        sys.exit(str(exc))
