"""Frames of a recording on their way into a model: standardised, stacked, masked."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_MASKED_STEPS = 8
"""Longest span of steps that one mask blanks; at most a fifth of the recording."""


def standardise(frames_BTF: NDArray[np.float32], lengths_B: NDArray[np.int64]) -> NDArray[np.float32]:
    """Each feature with mean 0 and deviation 1 over the real frames of its own row; padding stays 0."""
    mask_BT1 = (np.arange(frames_BTF.shape[1]) < lengths_B[:, None])[:, :, None]
    count_B11 = np.maximum(lengths_B, 1)[:, None, None]
    values = frames_BTF.astype(np.float64) * mask_BT1
    centred = (values - values.sum(1, keepdims=True) / count_B11) * mask_BT1
    deviation = np.sqrt((centred**2).sum(1, keepdims=True) / count_B11)
    return np.asarray(centred / np.maximum(deviation, 1e-5), np.float32)


def stack_frames(frames_BTF: NDArray[np.float32], count: int) -> NDArray[np.float32]:
    """[B, ceil(T / count), count * F]: neighbours side by side; the last step is filled up with zeros."""
    batch, steps, width = frames_BTF.shape
    missing = -steps % count
    padded = np.pad(frames_BTF, ((0, 0), (0, missing), (0, 0)))
    return padded.reshape(batch, (steps + missing) // count, count * width)


def mask_spans(inputs_BTD: Tensor, lengths_B: Tensor, features: int, count: int) -> Tensor:
    """A copy in which, in each row, `count` bands of features and `count` spans of steps are 0; drawn by torch's generator.

    Args:
        inputs_BTD: Stacked frames: D is a multiple of `features`, and a band is blanked in all of a step's frames.
        lengths_B: Real steps of each row.
        features: Of one frame (F).
        count: Masks of each kind.
    """
    batch, steps, width = inputs_BTD.shape
    keep = torch.ones_like(inputs_BTD)
    feature_D = torch.arange(width, device=inputs_BTD.device) % features
    step_T = torch.arange(steps, device=inputs_BTD.device)
    lengths_B = lengths_B.to(inputs_BTD.device)
    for _ in range(count):
        wide_B = torch.randint(0, max(features // 5, 1) + 1, (batch,), device=inputs_BTD.device)
        low_B = (torch.rand(batch, device=inputs_BTD.device) * (features - wide_B + 1)).long()
        band_BD = (feature_D >= low_B[:, None]) & (feature_D < (low_B + wide_B)[:, None])
        most_B = (lengths_B // 5).clamp(max=_MASKED_STEPS)
        long_B = (torch.rand(batch, device=inputs_BTD.device) * (most_B + 1)).long()
        start_B = (torch.rand(batch, device=inputs_BTD.device) * (lengths_B - long_B + 1)).long()
        span_BT = (step_T >= start_B[:, None]) & (step_T < (start_B + long_B)[:, None])
        keep = keep.masked_fill(band_BD[:, None] | span_BT[:, :, None], 0)
    return inputs_BTD * keep
