"""One rank of several runs, one after the other: `on_processes.py RANK SIZE PLACE JOBS`, see `tests/rendezvous.py`.

JOBS is a JSON list of `[run, step]`: the run as a job file has it, and the update after which it is killed, or null. The
answer, on the last line, has for each run the bytes of weights, gradients and optimizer state that this rank held, and
which share of the embedding it had while the output layer computed.
"""

from __future__ import annotations

import json
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from recurra.config.load import parse
from recurra.data.batch import Batch
from recurra.training import overlap
from recurra.training.callbacks.base import Callback
from recurra.training.run import TrainRun
from recurra.training.step import StepResult
from recurra.training.trainer import Due, Trainer
from recurra.training.work import Surroundings, work
from rendezvous import meet


class Killed(BaseException):
    """Stands for SIGKILL: nothing of ours catches it."""


class Look(Callback):
    """Weighs what the rank holds between two updates, and kills after `step`."""

    def __init__(self, step: int | None) -> None:
        self._step = step
        self._shares = [0.0]
        self.held: dict[str, float] = {}

    def started(self, trainer: Trainer) -> None:
        if trainer.update.shards is None or not trainer.update.model.apart:
            return
        embedding, head = trainer.update.model.apart

        def look(*_: Any) -> None:
            weight = embedding.weight
            self._shares.append(weight.to_local().numel() / weight.numel() if isinstance(weight, DTensor) else 1.0)

        def look_now_and_backwards(_: Any, __: Any, logits: Tensor) -> None:
            look()
            if logits.requires_grad:
                logits.register_hook(look)

        head.register_forward_hook(look_now_and_backwards)

    def stepped(self, trainer: Trainer, batch: Batch, result: StepResult) -> Due:
        update = trainer.update
        self.held = {
            "weights": _bytes(update.weights),
            "gradients": update.gradients.flat.nbytes,
            "optimizer": _bytes(update.optimizer.tensors),
            "storage": sum(p._local_tensor.nbytes if update.shards else p.nbytes for p in update.model.parameters()),
            "embedding_beside_head": max(self._shares),
        }
        if trainer.progress.step == self._step:
            raise Killed
        return Due()


def _bytes(tensors: dict[str, torch.Tensor]) -> int:
    return sum(value.nbytes for value in tensors.values())


def main() -> None:
    ranks, (jobs,) = meet()
    torch.set_num_threads(1)
    overlap.BUCKET_BYTES = 1024  # small models have several, too
    answers: list[dict[str, Any]] = []
    for job, step in json.loads(jobs):
        look = Look(step)
        try:
            work(parse(job, TrainRun), Surroundings(emit=lambda event: None, callbacks=[look], ranks=ranks))
        except Killed:
            ranks.gather(None)  # both have gone before one begins anew
        answers.append(look.held)
    print("\n" + json.dumps(answers))


if __name__ == "__main__":
    main()
