"""How far a run is: everything besides tensors that a resume needs. The same on all ranks."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from recurra.data.batch import Batch
from recurra.training.config import SpikeConfig
from recurra.training.step import StepResult

_MEMORY = 100
"""Updates that the moving mean and variance of the loss look back."""
_GROW_AFTER = 2000
_LARGEST_SCALE = 2.0**24


@dataclass
class Progress:
    """Counters after the last update; `to_json` is part of each checkpoint."""

    step: int = 0
    """Updates so far, skipped ones included."""
    position: dict[str, int | str] | None = None
    """Of the data pipeline after the last batch; None before the first."""
    curriculum: dict[str, float] | None = None
    """Where `Curriculum.note` stood after the last batch; None without a curriculum."""
    epoch: int = 0
    """Of the last batch, 0-based."""
    tokens: int = 0
    """Real time steps that the updates saw."""
    items: float = 0.0
    """Counted items of the loss that the updates saw."""
    elapsed_s: float = 0.0
    """Wall-clock time of all attempts, up to the last update."""
    nonfinite: int = 0
    """Updates in a row that were skipped because their gradient was not finite."""
    loss_scale: float = 2.0**7
    """What fp16-mixed multiplies losses, sums over the items of a batch, by: half of it after an update that was not finite,
    twice after `_GROW_AFTER` that were (Micikevicius et al. 2018, arXiv 1710.03740)."""
    scale_held: int = 0
    """Updates with this scale so far."""
    spikes: int = 0
    """Updates in a row that were left out because their loss was a spike."""
    judged: int = 0
    """Losses in the two moving averages below."""
    loss_mean: float = 0.0
    loss_variance: float = 0.0
    best_step: int | None = None
    """The evaluated step with the best objective so far."""
    best_metrics: dict[str, float] = field(default_factory=dict)
    evaluations_since_best: int = 0
    last_evaluated: int = 0
    """Step of the last evaluation."""

    def advance(self, batch: Batch, result: StepResult) -> None:
        """Count one update."""
        self.step += 1
        self.position = batch.position
        self.epoch = batch.epoch
        self.tokens += result.tokens
        self.items += result.count
        finite = math.isfinite(result.gradient_norm)
        self.nonfinite = 0 if finite else self.nonfinite + 1
        self._scale(finite)
        self.spikes = self.spikes + 1 if result.spike else 0
        if finite and not result.spike and math.isfinite(result.loss):
            self._follow(result.loss)

    def _scale(self, finite: bool) -> None:
        self.scale_held += 1
        if not finite:
            self.loss_scale, self.scale_held = max(self.loss_scale / 2, 1.0), 0
        elif self.scale_held >= _GROW_AFTER:
            self.loss_scale, self.scale_held = min(self.loss_scale * 2, _LARGEST_SCALE), 0

    def loss_limit(self, spike: SpikeConfig | None) -> float | None:
        """The largest loss that is no spike; None while nothing is judged."""
        if spike is None or self.judged < spike.warmup:
            return None
        return self.loss_mean + spike.deviations * math.sqrt(self.loss_variance)

    def _follow(self, loss: float) -> None:
        """Exponential moving mean and variance (Finch 2009), each loss alike until there are `_MEMORY` of them."""
        self.judged += 1
        share = max(1 / self.judged, 1 / _MEMORY)
        apart = loss - self.loss_mean
        self.loss_mean += share * apart
        self.loss_variance = (1 - share) * (self.loss_variance + share * apart * apart)

    def judge(self, metrics: dict[str, float], objective: tuple[str, Literal["min", "max"]]) -> bool:
        """Note an evaluation of the current step; True when its objective is the best so far."""
        name, direction = objective
        value, best = metrics[name], self.best_metrics.get(name)
        better = not math.isnan(value) and (best is None or (value < best if direction == "min" else value > best))
        if better:
            self.best_step, self.best_metrics, self.evaluations_since_best = self.step, metrics, 0
        else:
            self.evaluations_since_best += 1
        self.last_evaluated = self.step
        return better

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Progress:
        return cls(**value)
