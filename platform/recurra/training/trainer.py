"""The pieces of a run, and the few operations that the loop is made of."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from recurra.data.batch import Batch
from recurra.errors import DivergedError
from recurra.training.checkpoint import Checkpoints, Loaded
from recurra.training.config import SpikeConfig, TrainConfig
from recurra.training.curriculum import Curriculum
from recurra.training.evaluation import Evaluation, evaluate
from recurra.training.progress import Progress
from recurra.training.ranks import Ranks
from recurra.training.snapshot import put_snapshot, take_rows, take_snapshot
from recurra.training.sources import Batches
from recurra.training.step import StepResult, TrainStep, Wishes


@dataclass(frozen=True)
class Due:
    """What follows an update."""

    evaluate: bool = False
    save: bool = False
    end: str | None = None
    """Why the run ends now."""

    def __or__(self, other: Due) -> Due:
        return Due(self.evaluate or other.evaluate, self.save or other.save, self.end or other.end)


@dataclass
class Trainer:
    """A run on one rank. Built by `TrainRun.build`."""

    name: str
    config: TrainConfig
    ranks: Ranks
    update: TrainStep
    train: Batches
    evaluation: Callable[[], Batches] | None
    """A fresh pass over the evaluation data; None when there is none."""
    checkpoints: Checkpoints
    steps: int
    """Updates of the whole run."""
    curriculum: Curriculum | None = None
    """`train`, where it is one."""
    progress: Progress = field(default_factory=Progress)
    evaluated_whole: tuple[int, Evaluation] | None = None
    """Step and outcome of the last evaluation over all evaluation data in this attempt."""
    resumed_from: int | None = None
    """Step of the checkpoint that this attempt began with."""
    restore_s: float = 0.0
    """Seconds that looking for it and reading it took."""

    def restore(self) -> None:
        """Go to where the newest undamaged checkpoint was written, if there is one."""
        start_s = time.perf_counter()
        if loaded := self.checkpoints.load_newest():
            self._apply(loaded)
            self.resumed_from = loaded.step
            if self.curriculum is not None and self.progress.curriculum is not None:
                self.curriculum.go_to(self.progress.curriculum)
            if self.progress.position is not None:
                self.train.restore(self.progress.position)
        self.restore_s = time.perf_counter() - start_s

    def batches(self) -> Iterator[Batch]:
        """This rank's rows of the batches that are still to come."""
        if self.progress.step < self.steps:
            yield from self.train

    def step(self, batch: Batch, wishes: Wishes) -> StepResult:
        """One update; all ranks take part.

        Raises:
            DivergedError: Gradients were not finite, or losses spikes, too many times in a row.
        """
        spike = self.config.guard.spike
        limit_loss = self.progress.loss_limit(spike)
        scale = self.progress.loss_scale if self.config.precision == "fp16-mixed" else 1.0
        result = self.update(batch, self.progress.step + 1, self.steps, wishes, limit=limit_loss, scale=scale)
        self.progress.advance(batch, result)
        if self.curriculum is not None:
            self.progress.curriculum = self.curriculum.note(result.loss)
        if result.spike and spike is not None:
            self._meet_spike(result.loss, limit_loss or 0.0, spike)
        limit = self.config.guard.max_nonfinite
        if self.progress.nonfinite > limit:
            raise DivergedError(
                f"The gradient of {self.progress.nonfinite} updates in a row, up to step {self.progress.step}, was not "
                f"finite (train.guard.max_nonfinite is {limit}). Lower train.learning_rate "
                f"({self.config.learning_rate:g}) or set train.gradient_clip.norm."
            )
        return result

    def evaluate(self, tell: Callable[[int], None], *, whole: bool) -> Evaluation:
        """Metrics of the weights as they would be published; `whole` looks at more than evaluate_batches."""
        assert self.evaluation is not None
        batches = self.evaluation()
        limit = None if whole else self.config.evaluate_batches
        try:
            with self.update.published() as model:
                found = evaluate(self.update.task, model, batches, self.ranks, limit=limit, tell=tell)
        finally:
            batches.close()
        if limit is None:
            self.evaluated_whole = (self.progress.step, found)
        return found

    def save(self, before_commit: Callable[[], None] = lambda: None) -> float:
        """Copy the current step for a checkpoint, which a thread writes, dropping those that are no longer kept.

        Args:
            before_commit: Called on rank 0 by that thread.

        Returns:
            Seconds that training stood still for it.

        Raises:
            TrainingError, StorageError: The checkpoint before this one could not be written or committed.
        """
        progress, keep, best = self.progress, self.config.keep, self.progress.best_step
        return self.checkpoints.save(
            progress.step,
            progress.to_json(),
            take_snapshot(self.update),
            self.update.lanes.tensors(),
            rows=take_rows(self.update),
            before_commit=before_commit,
            after_commit=lambda: self.checkpoints.prune(keep, best),
        )

    def load_weights(self, step: int) -> None:
        """Put the weights of a checkpoint in place, as they were evaluated; the rest of it is left alone."""
        put_snapshot(self.update, self.checkpoints.load(step).tensors)

    def close(self) -> None:
        """Stop reading data."""
        self.train.close()

    def _meet_spike(self, loss: float, limit: float, spike: SpikeConfig) -> None:
        """The update was left out already; go back, or give up, when that is asked for."""
        seen = (
            f"The loss of step {self.progress.step} is {loss:.4g}; lately it was {self.progress.loss_mean:.4g}, and from "
            f"{limit:.4g} on it is a spike (train.guard.spike.deviations is {spike.deviations:g})."
        )
        if spike.action == "stop" or self.progress.spikes > spike.most:
            raise DivergedError(
                f"{seen} It was the {self.progress.spikes}. in a row. Lower train.learning_rate "
                f"({self.config.learning_rate:g}), look at the data of that step, or set train.guard.spike.action to rewind."
            )
        if spike.action == "rewind" and (loaded := self.checkpoints.load_newest()):
            # Only what was learned: progress and data go on behind the batches that led here.
            put_snapshot(self.update, loaded.tensors)

    def _apply(self, loaded: Loaded) -> None:
        self.progress = Progress.from_json(loaded.progress)
        put_snapshot(self.update, loaded.tensors)
        self.update.lanes.load(loaded.own)
