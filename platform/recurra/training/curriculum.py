"""Easier data first, each until the loss says that it is learned."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

from pydantic import Field

from recurra.config.section import Section
from recurra.data.batch import Batch
from recurra.training.sources import Batches


class CurriculumConfig(Section):
    """Datasets that come before `data.train`. For problems that are not found by looking at the whole of them."""

    easier: tuple[str, ...] = Field(min_length=1)
    """Addresses, in the order in which they are learned."""
    below: float = Field(gt=0)
    """Training loss, in the unit in which a run shows it, below which its running mean lets the next dataset begin."""
    updates: int = Field(default=100, ge=1)
    """Updates that the running mean looks back, and fewest of each dataset."""

    def build(self, stages: Sequence[Batches]) -> Curriculum:
        """The curriculum over these endless sources: the easier ones, then the training data."""
        return Curriculum(self, stages)


class Curriculum(Batches):
    """Batches of one source until `note` has seen that it is learned, then of the next."""

    def __init__(self, config: CurriculumConfig, stages: Sequence[Batches]) -> None:
        self._config = config
        self._stages = stages
        self._updates = 0
        self._loss = 0.0
        self.stage = 0
        """Of the batches to come, from 0; the last is the training data."""

    def __iter__(self) -> Iterator[Batch]:
        while True:
            stage = self.stage
            for batch in self._stages[stage]:
                yield batch
                if self.stage != stage:
                    self._stages[stage].close()
                    break

    def note(self, loss: float) -> dict[str, float]:
        """Take the loss of the last batch into account, the same on all ranks; gives what `go_to` takes."""
        self._updates += 1
        if math.isfinite(loss):
            self._loss += (loss - self._loss) / min(self._updates, self._config.updates)
        learned = self._updates >= self._config.updates and self._loss < self._config.below
        if learned and self.stage + 1 < len(self._stages):
            self.stage, self._updates, self._loss = self.stage + 1, 0, 0.0
        return {"stage": self.stage, "updates": self._updates, "loss": self._loss}

    def go_to(self, noted: Mapping[str, float]) -> None:
        """Stand where `note` gave this; `restore` then finds the batch."""
        self.stage, self._updates, self._loss = int(noted["stage"]), int(noted["updates"]), noted["loss"]

    def restore(self, position: dict[str, int | str]) -> None:
        if self._updates:  # otherwise it is the last batch of the stage before
            self._stages[self.stage].restore(position)

    def batches_in_epoch(self, epoch: int) -> int:
        return self._stages[self.stage].batches_in_epoch(epoch)

    def close(self) -> None:
        for stage in self._stages:
            stage.close()

    @property
    def wait_s(self) -> float:
        return sum(stage.wait_s for stage in self._stages)
