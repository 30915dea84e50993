"""Checkpoints: how long training stands still for one, and how long until it is durable. The last line is JSON.

A model whose checkpoint is about 50 MB, on an S3 server of this machine. Three ways, turn by turn in one process: without
checkpoints, with ones that the loop waits for until they are durable, and with ones in flight while it goes on. The server,
the threads that write and the updates share the cores; `cost` is what a checkpoint adds to a turn, so it has all of that in it.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from itertools import chain, repeat
from pathlib import Path

import numpy as np
import torch

from recurra.data.batch import Batch
from recurra.data.schema import Column, SequenceSchema
from recurra.data.vocabulary import ByteVocabulary
from recurra.data.write import DatasetWriter
from recurra.storage.server import EmbeddedServer
from recurra.training.in_flight import Saved
from recurra.training.ranks import SingleRank
from recurra.training.run import Origin, TrainRun
from recurra.training.step import Wishes
from recurra.training.trainer import Trainer

WAYS = ("none", "waited for", "in flight")


def make_run(base: str) -> TrainRun:
    return TrainRun.model_validate(
        {
            "name": "checkpoints",
            "task": "language_model",
            "data": {"train": f"{base}/text"},
            "model": {"cell": "lstm", "hidden_size": 920, "embedding_size": 128},
            "train": {"steps": 10**6, "global_batch": {"sequences": 8}, "truncated_bptt": 32},
            "runs": f"{base}/runs",
        }
    )


def write_text(base: str) -> None:
    vocabulary, generator = ByteVocabulary(), np.random.default_rng(0)
    schema = SequenceSchema((Column("tokens", vocabulary.dtype),))
    with DatasetWriter(f"{base}/text", schema, {"vocabulary": vocabulary.to_json()}) as writer:
        for _ in range(500):
            writer.write({"tokens": generator.integers(1, 256, 300)})


def turn(trainer: Trainer, batches: Iterator[Batch], way: str, updates: int, every: int) -> tuple[float, list[Saved]]:
    """Seconds of the updates, and the checkpoints made in them."""
    start_s, saved = time.perf_counter(), []
    for number in range(updates):
        trainer.step(next(batches), Wishes())
        # In the middle of an interval, so that the last one of a turn ends before the turn does.
        if way != "none" and number % every == every // 2:
            trainer.save()
            if way == "waited for":
                trainer.checkpoints.wait()
        saved += trainer.checkpoints.news()
    trainer.checkpoints.wait()
    return time.perf_counter() - start_s, saved + trainer.checkpoints.news()


def measure(trainer: Trainer, rounds: int, updates: int, every: int) -> dict[str, float]:
    batches = chain.from_iterable(trainer.batches() for _ in repeat(None))
    turn(trainer, batches, "in flight", every, every)  # buffers, connections
    spent: dict[str, list[float]] = {way: [] for way in WAYS}
    saved: dict[str, list[Saved]] = {way: [] for way in WAYS}
    for _ in range(rounds):
        for way in WAYS:
            seconds, made = turn(trainer, batches, way, updates, every)
            spent[way].append(seconds)
            saved[way] += made
    number = updates // every
    waited, flown = saved["waited for"], saved["in flight"]
    none = statistics.median(spent["none"])
    return {
        "mb": flown[0].size_bytes / 1e6,
        "update_ms": 1000 * none / updates,
        "standstill_waited_ms": 1000 * statistics.median(item.durable_s for item in waited),
        "standstill_in_flight_ms": 1000 * statistics.median(item.blocked_s for item in flown),
        "durable_waited_s": statistics.median(item.durable_s for item in waited),
        "durable_in_flight_s": statistics.median(item.durable_s for item in flown),
        "cost_waited_ms": 1000 * (statistics.median(spent["waited for"]) - none) / number,
        "cost_in_flight_ms": 1000 * (statistics.median(spent["in flight"]) - none) / number,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--updates", type=int, default=60, help="of a turn")
    parser.add_argument("--every", type=int, default=30, help="updates between two checkpoints")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        server = EmbeddedServer(Path(folder, "s3"))
        server.start()
        try:
            os.environ.update(server.environment())
            server.create_bucket("recurra")
            write_text("s3://recurra/bench")
            trainer = make_run("s3://recurra/bench").build(SingleRank(), Origin("bench", "cpu", None, None, print))
            found = measure(trainer, arguments.rounds, arguments.updates, arguments.every)
            trainer.close()
        finally:
            server.stop()
    for name, value in found.items():
        print(f"{name:<24} {value:10.2f}")
    print(json.dumps({"bench": "checkpoint", **{name: round(value, 3) for name, value in found.items()}}))


if __name__ == "__main__":
    main()
