"""Training: what the platform costs over a bare torch loop, and what a second worker brings. The last line is JSON.

The bare loop has the same model, optimizer and batches, made into tensors before the clock starts. The platform reads a
committed dataset, plans, prefetches, keeps its log and metrics, watches for stalls. Rounds alternate; medians of step times.
Then the same training from S3 beside Lightning and Ray Train with Ray Data (`train_contest.py`).
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from itertools import islice, pairwise
from pathlib import Path

import numpy as np
import torch
from train_contest import LENGTHS, PEERS, prepared

from recurra.data.batch import Batch
from recurra.data.schema import Column, SequenceSchema
from recurra.data.vocabulary import ByteVocabulary
from recurra.data.write import DatasetWriter
from recurra.telemetry.metrics import Metrics
from recurra.training.callbacks.base import Callback
from recurra.training.ranks import SingleRank
from recurra.training.run import Origin, TrainRun
from recurra.training.step import StepResult, Wishes
from recurra.training.trainer import Due, Trainer
from recurra.training.work import Surroundings, work

sys.path.insert(0, str(Path(__file__).parents[1]))
from rendezvous import meet, start_ranks

ROUNDS = 5
STEPS = 50
WARM = 10
"""Steps of a run that are not counted: the first window, the kernels' first calls."""
TURNS, UPDATES = 8, 11
"""Turns of two workers, and updates in each; the first of a turn is not counted."""


class Clock(Callback):
    """The moment of each update's end."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def stepped(self, trainer: Trainer, batch: Batch, result: StepResult) -> Due:
        self.ends.append(time.perf_counter())
        return Due()

    @property
    def step_s(self) -> float:
        return statistics.median(np.diff(self.ends[WARM:]).tolist())


def make_run(base: str, name: str) -> TrainRun:
    return TrainRun.model_validate(
        {
            "name": name,
            "task": "language_model",
            "data": {"train": f"{base}/text"},
            "model": {"cell": "lstm", "hidden_size": 256},
            "train": {
                "steps": STEPS,
                "global_batch": {"sequences": 32},
                "truncated_bptt": 64,
                "learning_rate": 0.001,
                "checkpoint_every": {"steps": 100_000},
            },
            "runs": f"{base}/runs",
        }
    )


def write_text(base: str) -> None:
    vocabulary, generator = ByteVocabulary(), np.random.default_rng(0)
    schema = SequenceSchema((Column("tokens", vocabulary.dtype),))
    with DatasetWriter(f"{base}/text", schema, {"vocabulary": vocabulary.to_json()}) as writer:
        for _ in range(2000):
            writer.write({"tokens": generator.integers(1, 256, generator.integers(100, 400))})


def bare(run: TrainRun) -> float:
    """Seconds a step of the loop that one writes by hand."""
    trainer = run.build(SingleRank(), Origin("bare", "cpu", None, None, print))
    task, model = trainer.update.task, trainer.update.model.train()
    made = [task.tensors(batch) for batch in islice(trainer.batches(), STEPS)]
    trainer.close()
    for parameter in model.parameters():
        parameter.grad = None
    optimizer = torch.optim.AdamW(model.parameters(), lr=run.train.learning_rate, weight_decay=0.0, fused=True)
    state, ends = None, []
    for tensors in made:
        optimizer.zero_grad()
        outputs, state = model(tensors.inputs, state, tensors.lengths, tensors.reset)
        loss = task.loss(outputs, tensors)
        (loss.total / loss.count).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        loss.total.item()  # somebody looks at the loss of each update, here as there
        state = {name: value.detach() for name, value in state.items()}
        ends.append(time.perf_counter())
    return statistics.median(np.diff(ends[WARM:]).tolist())


def ours(run: TrainRun) -> float:
    """Seconds a step of the platform's loop, in this process."""
    clock = Clock()
    work(run, Surroundings(emit=lambda event: None, metrics=Metrics(run=run.name), callbacks=[clock]))
    return clock.step_s


def workers_ratio(base: str, name: str) -> list[tuple[float, float]]:
    """Seconds an update of one worker and of two, turn by turn in the same two processes with a thread each.

    Of the platform's loop, without callbacks: log and metrics, 0.2 to 0.3 ms an update, are on rank 0 alone and in the
    overhead above. In one worker's turns the other process is idle. A turn is a second or two: the machine's pace changes from one ten
    seconds to the next by more than what is measured.
    """
    workers = start_ranks(2, [__file__], Path(base.removeprefix("file://"), f"address-{name}"), "worker", base, name)
    said = [worker.communicate(timeout=240)[0] for worker in workers]
    if any(worker.returncode for worker in workers):
        raise SystemExit(f"A worker of {name} failed.")
    turns: dict[str, list[float]] = json.loads(said[0].splitlines()[-1])
    around = [(before + after) / 2 for before, after in pairwise(turns["one"])]
    return list(zip(around, turns["two"], strict=True))


def worker() -> None:
    ranks, (_, base, name) = meet()
    torch.set_num_threads(1)
    trainers = {
        "one": make_run(base, f"{name}-one").build(SingleRank(), Origin("one", "cpu", None, None, print)),
        "two": make_run(base, f"{name}-two").build(ranks, Origin("two", "cpu", None, None, print)),
    }
    batches = {which: trainer.batches() for which, trainer in trainers.items()}
    turns: dict[str, list[float]] = {"one": [], "two": []}
    for which in [*["one", "two"] * TURNS, "one"]:
        ranks.gather(None)
        if which == "two" or ranks.rank == 0:
            ends = [time.perf_counter()]
            for batch in islice(batches[which], UPDATES):
                trainers[which].step(batch, Wishes())
                ends.append(time.perf_counter())
            turns[which].append(statistics.median(np.diff(ends[1:]).tolist()))
    for trainer in trainers.values():
        trainer.close()
    print(json.dumps(turns))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--venvs", type=Path, default=Path(tempfile.gettempdir()) / "recurra-bench-venvs")
    options = parser.parse_args()
    torch.set_num_threads(1)
    shown = {"bench": "train", **measure_overhead(options.rounds), **measure_peers(options.rounds, options.venvs)}
    print(json.dumps(shown))


def measure_overhead(rounds: int) -> dict[str, float]:
    """Our loop over a bare one, and two workers over one."""
    with tempfile.TemporaryDirectory() as directory:
        base = f"file://{directory}"
        write_text(base)
        steps: dict[str, list[float]] = {"bare": [], "ours": []}
        turns: list[tuple[float, float]] = []
        for number in range(rounds):
            steps["bare"].append(bare(make_run(base, f"bare-{number}")))
            steps["ours"].append(ours(make_run(base, f"ours-{number}")))
            found = workers_ratio(base, f"workers-{number}")
            turns += found
            one, two = (1e3 * statistics.median(times) for times in zip(*found, strict=True))
            said = ", ".join(f"{name} {1e3 * times[-1]:.2f} ms" for name, times in steps.items())
            ratio = statistics.median(one / two for one, two in found)
            print(f"round {number + 1}: {said}, one {one:.2f} ms, two {two:.2f} ms, ratio {ratio:.3f}", flush=True)
        overhead = [100 * (o / b - 1) for o, b in zip(steps["ours"], steps["bare"], strict=True)]
        scaling = [one / two for one, two in turns]
    return {
        "overhead_pct": round(statistics.median(overhead), 2),
        "scaling_2": round(statistics.median(scaling), 3),
        "bare_ms": round(1e3 * statistics.median(steps["bare"]), 2),
        "ours_ms": round(1e3 * statistics.median(steps["ours"]), 2),
    }


def measure_peers(rounds: int, venvs: Path) -> dict[str, float]:
    """Real tokens a second, ours over the best peer's in each round, and over the bare loop's."""
    rates: dict[tuple[str, str], list[float]] = {}
    with prepared(venvs) as contest:
        for number in range(rounds):
            for lengths in LENGTHS:
                for name in ("bare", "ours", *PEERS):
                    rate = contest.measure(name, lengths)
                    rates.setdefault((lengths, name), []).append(rate)
                    print(f"round {number + 1}: {lengths} lengths, {name}: {rate:.0f} tokens/s", flush=True)
    found: dict[str, float] = {}
    for lengths in LENGTHS:
        best = np.max([rates[lengths, name] for name in PEERS], axis=0)
        own = np.array(rates[lengths, "ours"])
        found[f"vs_best_peer_{lengths}"] = round(float(np.median(own / best)), 3)
        found[f"vs_bare_{lengths}"] = round(float(np.median(own / rates[lengths, "bare"])), 3)
        found |= {
            f"{lengths}_{name}_tokens_s": round(statistics.median(rates[lengths, name])) for name in ("ours", *PEERS)
        }
    return found


if __name__ == "__main__":
    if sys.argv[4:5] == ["worker"]:
        worker()
    else:
        main()
