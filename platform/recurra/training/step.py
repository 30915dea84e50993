"""One update of the weights: arrays, forward, loss, backward, sum over ranks, clip, optimizer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from recurra.data.batch import Batch
from recurra.models.sequence import Model
from recurra.models.state import State
from recurra.tasks.base import Loss, Task
from recurra.training.activation import ActivationPenalty
from recurra.training.average import WeightAverage
from recurra.training.config import TrainConfig
from recurra.training.gradients import FlatGradients
from recurra.training.lanes import LaneStates
from recurra.training.optim import Optimizer, learning_rate
from recurra.training.ranks import Ranks
from recurra.training.sharding import Shards

_TOTAL, _COUNT, _PADDED, _SAVE, _STOP = range(5)
"""Slots behind the gradients in the buffer that is summed over ranks."""

_AUTOCAST = {"bf16-mixed": torch.bfloat16, "fp16-mixed": torch.float16}
LAYERS_EVERY = 10
"""Steps between two measurements of each parameter's gradient norm."""


@dataclass(frozen=True)
class Wishes:
    """What this rank would like to happen after the next update; it happens on all ranks when one wants it."""

    save: bool = False
    stop: bool = False


@dataclass(frozen=True)
class StepResult:
    """One update, in numbers that are the same on all ranks."""

    loss: float
    """Mean over the counted items of the global batch."""
    count: float
    """Items counted: tokens, sequences, ..."""
    gradient_norm: float
    """Before clipping; NaN or infinite when the update was skipped for that."""
    learning_rate: float
    tokens: int
    """Real time steps of the global batch."""
    padded_tokens: int
    """Time steps of the global batch, padding included."""
    wishes: Wishes
    """Of all ranks together."""
    layer_norms: dict[str, float] = field(default_factory=dict)
    """Euclidean norm of each parameter's gradient before clipping; empty at most steps."""
    spike: bool = False
    """Whether the update was left out because the loss was above the limit that it was called with."""

    @property
    def skipped(self) -> bool:
        """Whether the weights were left as they were."""
        return self.spike or not np.isfinite(self.gradient_norm)


class TrainStep:
    """Owns everything that an update changes: weights, gradients, optimizer, average, carried states."""

    def __init__(self, task: Task, model: Model, config: TrainConfig, ranks: Ranks, *, device: str) -> None:
        regularisation = model.config.regularisation
        self.task = task
        self.model = model.to(device)
        self.config = config
        self.ranks = ranks
        self.device = device
        trained = {name for name, value in model.named_parameters() if value.requires_grad}
        self.shards = Shards(task, self.model, ranks) if config.parallel == "fsdp" and ranks.size > 1 else None
        self.weights: dict[str, Tensor] = self.shards.weights if self.shards else dict(model.named_parameters())
        """What this rank holds of each: all of it, or its rows."""
        self.gradients = FlatGradients(
            {name: value for name, value in self.weights.items() if name in trained},
            tail=5,
            ranks=ranks,
            spread=self.shards is not None,
        )
        self.optimizer = Optimizer(self.gradients.parameters, self.gradients.views, config, l2=regularisation.l2)
        self.average = WeightAverage(self.weights, config.ema) if config.ema is not None else None
        self.lanes = LaneStates(model, device)
        self._penalty = ActivationPenalty(model, regularisation)
        self._l1 = regularisation.l1
        self._autocast_dtype = _AUTOCAST.get(config.precision)

    def __call__(
        self,
        batch: Batch,
        step: int,
        steps: int,
        wishes: Wishes = Wishes(),
        *,
        limit: float | None = None,
        scale: float = 1.0,
    ) -> StepResult:
        """Update the weights from this rank's rows of a global batch.

        Args:
            batch: The rows of this rank.
            step: Number of this update, from 1; decides the learning rate and, with seed and rank, all randomness.
            steps: Updates of the whole run.
            wishes: What this rank wants afterwards.
            limit: A loss above it changes nothing; None = any loss may.
            scale: What losses are multiplied by before backward, and gradients divided by behind it.
        """
        self.model.train()
        self.gradients.clear()
        torch.manual_seed(_mix(self.config.seed, step, self.ranks.rank))
        tail = self.gradients.tail
        if self.shards is not None:
            self.shards.gather()
        for loss, penalty in self._losses(batch):
            if loss.total.requires_grad:  # not when all rows are filler
                whole = loss.total if penalty is None else loss.total + penalty
                (whole * scale if scale != 1.0 else whole).backward()  # type: ignore[no-untyped-call]
            tail[_TOTAL] += loss.total.detach()
            tail[_COUNT] += loss.count
        tail[_PADDED] = _computed_steps(batch, self.task.lookahead)
        tail[_SAVE], tail[_STOP] = wishes.save, wishes.stop
        if self.shards is not None:
            self.shards.move_gradients(self.gradients.views)
        self.gradients.finish_sum()
        total, count, padded, save, stop = tail.tolist()
        rate = learning_rate(self.config, step, steps)
        norm = self._average_gradient(max(count, 1.0) * scale)
        layer_norms = self.gradients.norms() if step % LAYERS_EVERY == 0 else {}
        spike = limit is not None and np.isfinite(norm) and total / max(count, 1.0) > limit
        if np.isfinite(norm) and not spike:
            self._update(norm, rate, step)
        return StepResult(
            loss=total / max(count, 1.0),
            count=count,
            gradient_norm=norm,
            learning_rate=rate,
            tokens=batch.global_tokens,
            padded_tokens=int(padded),
            wishes=Wishes(save=save > 0, stop=stop > 0),
            layer_norms=layer_norms,
            spike=spike,
        )

    @contextmanager
    def published(self) -> Iterator[Model]:
        """A model with the weights that are evaluated and published: the average, if there is one. All ranks enter the
        block; inside it no rank needs another, and nothing else may use `model`."""
        if self.shards is not None:
            yield self.shards.whole_model(self.weights if self.average is None else self.average.values)
            return
        with self.average.in_place() if self.average is not None else nullcontext():
            yield self.model

    def _losses(self, batch: Batch) -> Iterator[tuple[Loss, Tensor | None]]:
        """Loss and penalty of each part of this rank's rows; the states of lanes are carried on at the end."""
        state = self.lanes.take(batch.lanes) if batch.lanes is not None else None
        ends: list[State] = []
        parts = _parts(len(batch.lengths), self.config.accumulate)
        for rows in parts:
            if rows is parts[-1]:
                (self.shards or self.gradients).expect_last()
            start = {name: value[rows] for name, value in state.items()} if state is not None else None
            end, loss, penalty = self._forward(_rows_of(batch, rows), start)
            ends.append(end)
            yield loss, penalty
        if batch.lanes is not None:
            self.lanes.put(batch.lanes, {name: torch.cat([end[name] for end in ends]) for name in ends[0]})

    def _forward(self, batch: Batch, state: State | None) -> tuple[State, Loss, Tensor | None]:
        tensors = self.task.tensors(batch).to(self.device)
        autocast = torch.autocast(
            torch.device(self.device).type, self._autocast_dtype, enabled=self._autocast_dtype is not None
        )
        with autocast, self._penalty.watching():
            forward = self.shards.forward if self.shards else partial(self.task.forward, self.model)
            outputs, end = forward(tensors, state)
        loss = self.task.loss(outputs.float(), tensors)
        if self.shards is not None and not loss.total.requires_grad:
            # The others wait for this rank's gradients, of filler, too: those of a sum of nothing are zero.
            loss = replace(loss, total=outputs.flatten()[:0].sum().float())
        return end, loss, self._penalty.cost(tensors.lengths, tensors.reset)

    def _average_gradient(self, divisor: float) -> float:
        """Divide the summed gradients and add the L1 term; gives their norm."""
        gradients = self.gradients
        gradients.flat.div_(divisor)
        if self._l1:
            for name, view in gradients.views.items():
                if view.dim() > 1:
                    view.add_(gradients.parameters[name].detach().sign(), alpha=self._l1)
        return float(gradients.norm().item())

    def _update(self, norm: float, rate: float, step: int) -> None:
        self.gradients.clip(self.config.gradient_clip, norm)
        self.optimizer.step(rate)
        if self.average is not None:
            self.average.update(step)


def _computed_steps(batch: Batch, lookahead: int) -> int:
    """Time steps of this rank's rows with their padding; the lookahead of lanes comes again in the next window."""
    rows, steps = batch.reset.shape
    return int(rows * (steps - (lookahead if batch.lanes is not None else 0)))


def _parts(rows: int, wanted: int) -> list[slice]:
    """`wanted` nearly equal slices of `rows` rows, fewer when there are fewer rows."""
    edges = np.linspace(0, rows, min(wanted, rows) + 1).astype(int).tolist()
    return [slice(start, end) for start, end in pairwise(edges)]


def _rows_of(batch: Batch, rows: slice) -> Batch:
    if rows == slice(0, len(batch.lengths)):
        return batch
    return replace(
        batch,
        columns={name: values[rows] for name, values in batch.columns.items()},
        lengths=batch.lengths[rows],
        reset=batch.reset[rows],
        ids=batch.ids[rows],
        weight=batch.weight[rows],
        lanes=None if batch.lanes is None else batch.lanes[rows],
    )


def _mix(seed: int, step: int, rank: int) -> int:
    """A 63-bit seed for all randomness of one update on one rank; so that no generator's state has to be kept.

    The finaliser of SplitMix64 (Steele, Lea, Flood 2014).
    """
    z = (seed * 0x9E3779B97F4A7C15 + step * 0xD1B54A32D192ED03 + rank * 0x8CB92BA72F3D8DD7) & _MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    return (z ^ (z >> 31)) >> 1


_MASK = (1 << 64) - 1
