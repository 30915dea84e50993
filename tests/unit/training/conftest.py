"""Small real datasets, runs of a few steps on them, and ranks that are threads."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from recurra.data.schema import Column, SequenceSchema
from recurra.data.vocabulary import ByteVocabulary
from recurra.data.write import DatasetWriter
from recurra.tasks.problems.copying import Copy
from recurra.training.ranks import Ranks
from recurra.training.run import TrainRun
from recurra.training.trainer import Trainer

MakeRun = Callable[..., TrainRun]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Small tensors gain nothing from more, and the machine is shared."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def datasets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`text` and `text-eval` (sentences of 5 to 40 bytes), `copy` (bits of the NTM's copy problem)."""
    base = tmp_path_factory.mktemp("datasets")
    vocabulary = ByteVocabulary()
    schema = SequenceSchema((Column("tokens", vocabulary.dtype),))
    generator = np.random.default_rng(7)
    for name, sequences in (("text", 90), ("text-eval", 20)):
        with DatasetWriter(f"file://{base}/{name}", schema, {"vocabulary": vocabulary.to_json()}) as writer:
            for _ in range(sequences):
                letters = generator.integers(97, 105, generator.integers(5, 40))
                writer.write({"tokens": np.concatenate([[vocabulary.bos], letters])})
    copy = Copy(width=3)
    with DatasetWriter(f"file://{base}/copy", copy.schema, {"problem": copy.describe()}) as writer:
        for example in copy.examples(40, [(1, 4)], seed=1):
            writer.write(example)
    return base


@pytest.fixture
def make_run(datasets: Path, tmp_path: Path) -> MakeRun:
    """A run on the small text; `train` and `model` take settings, `data` changes the datasets."""

    def make(name: str = "a", *, train: dict[str, Any] = {}, model: dict[str, Any] = {}, **sections: Any) -> TrainRun:  # noqa: B006
        return TrainRun.model_validate(
            {
                "name": name,
                "task": "language_model",
                "data": {"train": f"file://{datasets}/text", "eval": f"file://{datasets}/text-eval"},
                "model": {"hidden_size": 12, "embedding_size": 6, **model},
                "train": {
                    "steps": 8,
                    "global_batch": {"sequences": 6},
                    "evaluate_every": 100,
                    "checkpoint_every": {"steps": 100},
                    **train,
                },
                "runs": f"file://{tmp_path}/runs",
                **sections,
            }
        )

    return make


class ThreadRanks(Ranks):
    """One of several ranks that are threads of this process; adds in the order of ranks, as gloo does for each element."""

    def __init__(self, rank: int, shared: ThreadGroup) -> None:
        self.rank = rank
        self.size = shared.size
        self._shared = shared

    def begin_sum(self, values: Tensor) -> Callable[[], None]:
        everyones = self.gather(values.clone())
        values.copy_(torch.stack(everyones).sum(0))
        return lambda: None

    def gather(self, value: Any) -> list[Any]:
        self._shared.values[self.rank] = value
        self._shared.barrier.wait(timeout=60)
        values = list(self._shared.values)
        self._shared.barrier.wait(timeout=60)
        return values

    def aside(self) -> Ranks:
        return ThreadRanks(self.rank, self.broadcast(ThreadGroup(self.size)))


class ThreadGroup:
    """Runs a function on several ranks at once."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.barrier = threading.Barrier(size)
        self.values: list[Any] = [None] * size

    def run(self, work: Callable[[Ranks], Any]) -> list[Any]:
        """What `work` returns on each rank; raises the first rank's error."""
        results: list[Any] = [None] * self.size
        errors: list[BaseException] = []

        def one(rank: int) -> None:
            try:
                results[rank] = work(ThreadRanks(rank, self))
            except BaseException as exc:  # noqa: BLE001 - handed on by `run`
                errors.append(exc)
                self.barrier.abort()

        threads = [threading.Thread(target=one, args=(rank,)) for rank in range(self.size)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        real = [error for error in errors if not isinstance(error, threading.BrokenBarrierError)]
        if errors:
            raise (real or errors)[0]
        return results


@pytest.fixture
def on_ranks(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, Callable[[Ranks], Any]], list[Any]]:
    """`on_ranks(3, work)` calls `work(ranks)` on three ranks and gives their results."""
    build, lock = TrainRun.build, threading.Lock()

    def build_alone(run: TrainRun, ranks: Ranks, *arguments: Any) -> Trainer:
        with lock:  # threads, unlike processes, share torch's generator, which draws the first weights
            trainer = build(run, ranks, *arguments)
        ranks.gather(None)  # nor may one seed it for its first update while another still builds
        return trainer

    monkeypatch.setattr(TrainRun, "build", build_alone)
    return lambda size, work: ThreadGroup(size).run(work)
