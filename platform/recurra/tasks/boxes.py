"""Boxes in a picture: x and y of the upper left corner, width and height, all as shares of the picture's size."""

from __future__ import annotations

import torch
from torch import Tensor

_SMALLEST = 1e-6


def boxes_of(outputs: Tensor) -> Tensor:
    """[..., 4] numbers of any size as boxes: centre and size in (0, 1), then corner and size."""
    centre, size = outputs.float().sigmoid().chunk(2, -1)
    return torch.cat([centre - size / 2, size], -1)


def overlap(first: Tensor, second: Tensor) -> Tensor:
    """[...] intersection over union of boxes [..., 4], in [0, 1]."""
    intersection, union, _ = _areas(first, second)
    return intersection / union.clamp(min=_SMALLEST)


def box_loss(said: Tensor, true: Tensor) -> Tensor:
    """[...] L1 distance of the four numbers, and 1 - generalised overlap (Rezatofighi et al. 2019, arXiv 1902.09630),
    which has a gradient also where boxes are apart."""
    intersection, union, hull = _areas(said, true)
    generalised = intersection / union.clamp(min=_SMALLEST) - (hull - union) / hull.clamp(min=_SMALLEST)
    return (said - true).abs().sum(-1) + 1 - generalised


def _areas(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of intersection, union and smallest box around both."""
    low_1, size_1 = first.chunk(2, -1)
    low_2, size_2 = second.chunk(2, -1)
    high_1, high_2 = low_1 + size_1, low_2 + size_2
    intersection = (torch.minimum(high_1, high_2) - torch.maximum(low_1, low_2)).clamp(min=0).prod(-1)
    hull = (torch.maximum(high_1, high_2) - torch.minimum(low_1, low_2)).prod(-1)
    return intersection, size_1.prod(-1) + size_2.prod(-1) - intersection, hull
