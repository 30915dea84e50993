"""Weights of a module as safetensors bytes, and back."""

from __future__ import annotations

import safetensors.torch
from safetensors import SafetensorError
from torch import nn

from recurra.errors import ModelError


def save_weights(model: nn.Module) -> bytes:
    """All parameters and buffers; equal weights give equal bytes."""
    tensors = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    data: bytes = safetensors.torch.save(tensors)
    return data


def load_weights(model: nn.Module, data: bytes) -> None:
    """Put saved weights into a model of the same configuration, keeping its device and dtype.

    Raises:
        ModelError: The bytes are no safetensors file, or names or shapes differ from the model's; each is named.
    """
    try:
        tensors = safetensors.torch.load(data)
    except (SafetensorError, ValueError) as exc:
        raise ModelError(
            f"The weights are no readable safetensors file ({exc}). Publish or download the bundle again."
        ) from exc
    own = model.state_dict()
    faults = [f"{name} is missing" for name in own if name not in tensors]
    faults += [f"{name} is not of this model" for name in tensors if name not in own]
    faults += [
        f"{name} has shape {list(tensors[name].shape)} where the model has {list(value.shape)}"
        for name, value in own.items()
        if name in tensors and tensors[name].shape != value.shape
    ]
    if faults:
        shown = "; ".join(faults[:5]) + (f"; and {len(faults) - 5} more" if len(faults) > 5 else "")
        raise ModelError(
            f"The weights do not fit the model: {shown}. Build the model from the same `model` section and task as the "
            "weights were saved with."
        )
    model.load_state_dict(tensors)
