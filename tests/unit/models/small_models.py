"""One small model of each kind, with its states where a server would have them."""

from __future__ import annotations

import torch

from recurra.models.config import ModelConfig, NtmConfig, RegularisationConfig
from recurra.models.sequence import ModelShape, SequenceModel

FEATURES = ModelShape("features", 3, 2, per_step=True)
TOKENS = ModelShape("tokens", 7, 7, per_step=True)
SLOTS = 70
"""More than a native step takes at once."""


def model(cell, shape=FEATURES, **changes):
    torch.manual_seed(0)
    ntm = NtmConfig(memory_rows=9, memory_width=4, read_heads=2)
    made = SequenceModel(ModelConfig(cell=cell, hidden_size=5, ntm=ntm, **changes), shape).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)  # biases, gains and starts that say something
    return made


def slots_of(stepped, count=SLOTS):
    """States in every other row of larger tensors, as a server keeps them side by side with others."""
    start = stepped.zero_state(1)
    room = {name: value.detach().repeat(2 * count, *[1] * (value.dim() - 1)) for name, value in start.items()}
    return {name: value[::2] for name, value in room.items()}


def inputs_of(stepped, rows, steps):
    if stepped.shape.input == "tokens":
        return torch.randint(0, stepped.shape.input_size, (rows, steps))
    return torch.randn(rows, steps, stepped.shape.input_size)


EVERYTHING = {
    "layers": 3,
    "residual": True,
    "layer_norm": True,
    "regularisation": RegularisationConfig(zoneout=0.2, dropout=0.5),
}
MODELS = {
    **{cell: (cell, {}) for cell in ("rnn", "gru", "lstm", "mingru", "ntm")},
    "relu": ("rnn", {"nonlinearity": "relu"}),
    "gru-options": ("gru", EVERYTHING),
    "lstm-options": ("lstm", {**EVERYTHING, "peephole": True}),
    "projected": ("lstm", {"projection_size": 2, "layers": 2}),
    "tied": ("lstm", {"tied_embeddings": True, "shape": TOKENS}),
    "ntm-tokens": ("ntm", {"shape": TOKENS}),
    "pooled": ("gru", {"shape": ModelShape("features", 3, 2, per_step=False)}),
    "mean": ("gru", {"shape": ModelShape("features", 3, 2, per_step=False), "pooling": "mean"}),
}
