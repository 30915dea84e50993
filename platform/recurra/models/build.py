"""From the `model` section to a core."""

from __future__ import annotations

from recurra.models.config import ModelConfig
from recurra.models.core import Core
from recurra.models.ntm import NtmCore
from recurra.models.recurrent import RecurrentStack


def build_core(config: ModelConfig, input_size: int) -> Core:
    """An untrained core for `input_size` features a step; deterministic under `torch.manual_seed`."""
    if config.cell == "ntm":
        return NtmCore(config, input_size)
    return RecurrentStack(config, input_size)
