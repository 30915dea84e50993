"""Optimizer, decay groups, and the learning rate as a pure function of the step."""

from __future__ import annotations

import math

import torch
from torch import nn

from recurra.training.config import TrainConfig


def build_optimizer(model: nn.Module, config: TrainConfig, *, l2: float) -> torch.optim.Optimizer:
    """An optimizer over the model's parameters in the order of their names.

    Args:
        model: On the device where it will stay.
        config: Kind of optimizer and its settings.
        l2: Weight decay of matrices; biases, gains and initial states are left alone.
    """
    named = sorted((name, value) for name, value in model.named_parameters() if value.requires_grad)
    groups = [
        {"params": [value for _, value in named if value.dim() > 1], "weight_decay": l2},
        {"params": [value for _, value in named if value.dim() <= 1], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    rate = config.learning_rate
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=rate, betas=config.betas, fused=True)
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=rate, momentum=config.momentum, fused=True)
    return torch.optim.RMSprop(groups, lr=rate, momentum=config.momentum, foreach=True)


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Use `rate` in all groups from the next update on."""
    for group in optimizer.param_groups:
        group["lr"] = rate


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
