"""A copy of tensors in host memory that is used again for the next one: what a checkpoint writes while training goes on."""

from __future__ import annotations

import torch
from torch import Tensor


class HostCopy:
    """Owns one buffer a name; pinned where the tensor is on a GPU, so that the copy does not stop the stream."""

    def __init__(self) -> None:
        self._buffers: dict[str, Tensor] = {}
        self._copied: torch.cuda.Event | None = None

    @torch.no_grad()
    def take(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Copy the values that the tensors have now.

        Args:
            tensors: Any device. May be changed as soon as this returns: on a GPU by work of the current stream.

        Returns:
            Contiguous tensors in host memory under the same names, whose values are there after `wait`, until the
            next `take`.
        """
        self._buffers = {name: self._buffer(name, value) for name, value in tensors.items()}
        on_gpu = False
        for name, value in tensors.items():
            self._buffers[name].copy_(value, non_blocking=value.is_cuda)
            on_gpu |= value.is_cuda
        self._copied = torch.cuda.Event() if on_gpu else None  # type: ignore[no-untyped-call]
        if self._copied is not None:
            self._copied.record()
        return dict(self._buffers)

    def wait(self) -> None:
        """Return once the last copy has arrived; from any thread."""
        if self._copied is not None:
            self._copied.synchronize()

    def _buffer(self, name: str, value: Tensor) -> Tensor:
        buffer = self._buffers.get(name)
        if buffer is not None and (buffer.shape, buffer.dtype) == (value.shape, value.dtype):
            return buffer
        return torch.empty(value.shape, dtype=value.dtype, pin_memory=value.is_cuda)
