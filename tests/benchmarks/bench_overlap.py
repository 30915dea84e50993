"""What it brings to sum gradients while backward still computes: two workers, two LSTM layers. The last line is JSON.

By messages, as between machines. One bucket for all gradients, sent behind the backward pass, and buckets of the platform's size take turns on one batch in
the same two processes, update by update.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
from bench_train import write_text

from recurra.training import overlap, step
from recurra.training.gradients import FlatGradients
from recurra.training.run import Origin, TrainRun
from recurra.training.step import TrainStep

sys.path.insert(0, str(Path(__file__).parents[1]))
from rendezvous import meet, start_ranks

BUCKETS = {"one": 1 << 30, "buckets": overlap.BUCKET_BYTES}
WARM = 3
"""Updates with each that are not counted."""


class Watched(FlatGradients):
    """Notes how long an update stands still for sums behind its backward pass."""

    waited_s = 0.0

    def finish_sum(self) -> None:
        begun = time.perf_counter()
        super().finish_sum()
        self.waited_s = time.perf_counter() - begun


def make_run(base: str, rows: int) -> TrainRun:
    return TrainRun.model_validate(
        {
            "name": "overlap",
            "task": "language_model",
            "data": {"train": f"{base}/text"},
            "model": {"cell": "lstm", "layers": 2, "hidden_size": 256},
            "train": {"steps": 10, "global_batch": {"sequences": rows}, "truncated_bptt": 64},
            "runs": f"{base}/runs",
        }
    )


def worker() -> None:
    ranks, (_, base, rows, updates) = meet()
    torch.set_num_threads(1)
    step.FlatGradients = Watched
    type(ranks).prepare_sums = lambda self, values: False  # as between machines
    steps: dict[str, TrainStep] = {}
    for name, size in BUCKETS.items():
        overlap.BUCKET_BYTES = size
        trainer = make_run(base, int(rows)).build(ranks, Origin("overlap", "cpu", None, None, print))
        batch = next(iter(trainer.batches()))
        trainer.close()
        steps[name] = trainer.update
    took: dict[str, list[tuple[float, float]]] = {name: [] for name in steps}
    for number in range(1, int(updates) + WARM + 1):
        for name in [*steps] if number % 2 else [*steps][::-1]:
            ranks.gather(None)
            begun = time.perf_counter()
            steps[name](batch, number, 1000)
            took[name].append((time.perf_counter() - begun, steps[name].gradients.waited_s))
    print(json.dumps({name: took[name][WARM:] for name in steps}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=32, help="of both workers together, 64 steps each")
    parser.add_argument("--updates", type=int, default=40)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        base = f"file://{directory}"
        write_text(base)
        place = Path(directory, "address")
        workers = start_ranks(2, [__file__], place, "worker", base, str(options.rows), str(options.updates))
        said = [worker.communicate(timeout=600)[0] for worker in workers]
    if any(worker.returncode for worker in workers):
        raise SystemExit("A worker failed.")
    found: dict[str, object] = {"bench": "overlap", "rows": options.rows}
    took = json.loads(said[0].splitlines()[-1])
    for name, pairs in took.items():
        update_s, waited_s = zip(*pairs, strict=True)
        ratio = statistics.median(update / one for update, (one, _) in zip(update_s, took["one"], strict=True))
        found[name] = {
            "update_ms": round(1e3 * statistics.median(update_s), 2),
            "least_ms": round(1e3 * min(update_s), 2),
            "waited_ms": round(1e3 * statistics.median(waited_s), 2),
            "vs_one": round(ratio, 3),
        }
    print(json.dumps(found))


if __name__ == "__main__":
    if sys.argv[4:5] == ["worker"]:
        worker()
    else:
        main()
