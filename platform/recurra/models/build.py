"""From the `model` section to a core."""

from __future__ import annotations

from recurra.models.config import ModelConfig
from recurra.models.core import Core
from recurra.models.ntm import NtmCore
from recurra.models.recurrent import RecurrentStack
from recurra.models.windowed import WindowedAttention


def build_core(config: ModelConfig, input_size: int) -> Core:
    """An untrained core for `input_size` features a step; deterministic under `torch.manual_seed`."""
    core = NtmCore(config, input_size) if config.cell == "ntm" else RecurrentStack(config, input_size)
    if config.attention_window is None:
        return core
    return WindowedAttention(core, config.attention, config.attention_window)
