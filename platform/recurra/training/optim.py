"""Optimizer, decay groups, and the learning rate as a pure function of the step.

The rules themselves are torch's functional ones. Its Optimizer classes import the whole compiler at their first call
(2.4 s of CPU and 100 MB in every worker, at every start and restart), although nothing here is compiled.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.optim.adamw import adamw
from torch.optim.rmsprop import rmsprop
from torch.optim.sgd import sgd

from recurra.training.config import TrainConfig

_MOMENTS = {"adamw": ("first", "second"), "sgd": ("momentum",), "rmsprop": ("second", "momentum")}
"""What each rule keeps for each parameter; rmsprop also the "mean" of its gradients when it is centered."""


class Optimizer:
    """Moves parameters along their gradients, in place.

    Args:
        parameters: By name.
        gradients: Of each parameter; the tensors that every `step` reads.
        config: Kind of optimizer and its settings.
        l2: Weight decay of matrices; biases, gains and initial states are left alone.
    """

    def __init__(
        self, parameters: Mapping[str, Tensor], gradients: Mapping[str, Tensor], config: TrainConfig, *, l2: float
    ) -> None:
        moments = _MOMENTS[config.optimizer]
        if config.optimizer == "rmsprop" and config.rmsprop.centered:
            moments = (*moments, "mean")
        self._config = config
        self.tensors: dict[str, Tensor] = {
            f"{moment}.{name}": torch.zeros_like(value, requires_grad=False)
            for moment in moments
            for name, value in parameters.items()
        }
        """What a checkpoint keeps, by name; changed in place."""
        device = next(iter(parameters.values())).device
        # Of updates, for the bias correction: on the CPU unless a fused kernel reads them.
        counts = torch.zeros(len(parameters), device=device if config.optimizer == "adamw" else "cpu")
        self.tensors["updates"] = counts
        self._groups = []
        for decays in (True, False):
            names = [name for name, value in parameters.items() if (value.dim() > 1) == decays]
            rows = [row for row, value in enumerate(parameters.values()) if (value.dim() > 1) == decays]
            self._groups.append(
                _Group(
                    parameters=[parameters[name].detach() for name in names],
                    gradients=[gradients[name] for name in names],
                    moments={moment: [self.tensors[f"{moment}.{name}"] for name in names] for moment in moments},
                    counts=[counts[row] for row in rows],
                    weight_decay=l2 if decays else 0.0,
                )
            )

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """One update at this learning rate."""
        rule = {"adamw": _adamw, "sgd": _sgd, "rmsprop": _rmsprop}[self._config.optimizer]
        for group in self._groups:
            if group.parameters:
                rule(group, self._config, rate)


@dataclass(frozen=True)
class _Group:
    """Parameters with the same weight decay, as the lists that torch's functions take."""

    parameters: list[Tensor]
    gradients: list[Tensor]
    moments: dict[str, list[Tensor]]
    counts: list[Tensor]
    weight_decay: float


def _adamw(group: _Group, config: TrainConfig, rate: float) -> None:
    adamw(
        group.parameters,
        group.gradients,
        group.moments["first"],
        group.moments["second"],
        [],
        group.counts,
        fused=True,
        amsgrad=False,
        beta1=config.betas[0],
        beta2=config.betas[1],
        lr=rate,
        weight_decay=group.weight_decay,
        eps=config.epsilon,
        maximize=False,
    )


def _sgd(group: _Group, config: TrainConfig, rate: float) -> None:
    buffers: list[Tensor | None] = [*group.moments["momentum"]]
    sgd(
        group.parameters,
        group.gradients,
        buffers,
        fused=True,
        weight_decay=group.weight_decay,
        momentum=config.momentum,
        lr=rate,
        dampening=0.0,
        nesterov=False,
        maximize=False,
    )


def _rmsprop(group: _Group, config: TrainConfig, rate: float) -> None:
    rmsprop(
        group.parameters,
        group.gradients,
        group.moments["second"],
        group.moments.get("mean", []),
        group.moments["momentum"],
        group.counts,
        foreach=True,
        lr=rate,
        alpha=config.rmsprop.decay,
        eps=config.epsilon,
        weight_decay=group.weight_decay,
        momentum=config.momentum,
        centered=config.rmsprop.centered,
    )


def learning_rate(config: TrainConfig, step: int, steps: int) -> float:
    """The rate of one update.

    Args:
        config: Base rate and schedule.
        step: The update, from 1.
        steps: Updates of the whole run.
    """
    return config.learning_rate * _factor(config, step, steps)


def _factor(config: TrainConfig, step: int, steps: int) -> float:
    schedule = config.schedule
    one_cycle = schedule.kind == "one_cycle"
    warmup = schedule.warmup or (round(0.3 * steps) if one_cycle else 0)
    if step <= warmup:
        # Smith's one-cycle policy rises along a cosine from 1/25 of the highest rate (arXiv 1708.07120).
        return 0.04 + 0.96 * _cosine(1 - step / warmup) if one_cycle else step / warmup
    if schedule.kind == "constant":
        return 1.0
    share_done = min(1.0, (step - warmup) / max(1, steps - warmup))
    falling = 1 - share_done if schedule.kind == "linear" else _cosine(share_done)
    return schedule.floor + (1 - schedule.floor) * falling


def _cosine(share: float) -> float:
    """Falls from 1 at 0 to 0 at 1."""
    return 0.5 * (1 + math.cos(math.pi * share))
