"""Model calls of the engine: batches of sequences in, numbers out. One that breaks the batch fails alone."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recurra.errors import RequestError
from recurra.models.native.stepping import Precision
from recurra.models.reader import build_reader
from recurra.models.sequence import Model
from recurra.models.stepper import build_stepper
from recurra.serving.slots import Slots
from recurra.serving.work import Sequence

log = logging.getLogger(__name__)

FIXED_ROWS = 8
"""Rows of every batch in deterministic mode."""
WARM_STEPS = 8


class Compute:
    """Steps and forward passes over slots.

    Args:
        model: In eval mode, on its device.
        slots: States of the sequences that hold a slot.
        deterministic: Step in batches of `FIXED_ROWS` rows and read whole sequences one by one, so that every number
            comes out of products of one shape.
        precision: Of the steps.

    Raises:
        ConfigError: The model cannot step in that precision.
    """

    def __init__(self, model: Model, slots: Slots, *, deterministic: bool, precision: Precision = "float32") -> None:
        self.model = model
        self.slots = slots
        self.deterministic = deterministic
        self.device = next(model.parameters()).device
        fixed_rows = FIXED_ROWS if deterministic else None
        self._stepper = build_stepper(model, slots.state, precision=precision, fixed_rows=fixed_rows)
        self._reader = build_reader(model, slots.state, slots.blank, self._stepper)

    @property
    def pads(self) -> bool:
        """Whether a forward pass computes padding."""
        return self._reader.pads

    def step(self, batch: list[Sequence]) -> tuple[list[Sequence], Tensor | None, list[tuple[Sequence, RequestError]]]:
        """Advance the slots of a batch by the next input of each sequence.

        Returns:
            The sequences that were advanced, their outputs [B, K], and those that failed.
        """
        return self._alone_on_error(batch, self._step)

    def encode(
        self, batch: list[tuple[Sequence, int]]
    ) -> tuple[list[Sequence], Tensor | None, list[tuple[Sequence, RequestError]]]:
        """Read the next chunk of each sequence; slots of those that hold one are advanced.

        Returns:
            The sequences that were read, their outputs [B, T, K] or [B, K], and those that failed.
        """
        steps = dict(batch)
        every = any(sequence.outputs == "all" for sequence in steps)
        together = self._alone if self.deterministic else self._alone_on_error
        return together(list(steps), lambda part: self._read(part, steps, every=every))

    def warm_up(self, sizes: list[int]) -> None:
        """Step and read every batch size once, since the first call of each is far slower."""
        for size in sizes:
            if self.model.steppable:
                self._stepper.step(torch.from_numpy(self._blank_inputs(size)).to(self.device), range(size))
            self._reader.read(list(self._blank_inputs(size, WARM_STEPS)), [-1] * size, every=False)

    def _alone_on_error(
        self, batch: list[Sequence], run: Callable[[list[Sequence]], Tensor]
    ) -> tuple[list[Sequence], Tensor | None, list[tuple[Sequence, RequestError]]]:
        try:
            return batch, run(batch), []
        except Exception as exc:
            if len(batch) == 1:
                log.exception("A sequence of %d inputs failed in the model.", batch[0].inputs.shape[0])
                return [], None, [(batch[0], _model_failed(exc))]
        return self._alone(batch, run)

    def _alone(
        self, batch: list[Sequence], run: Callable[[list[Sequence]], Tensor]
    ) -> tuple[list[Sequence], Tensor | None, list[tuple[Sequence, RequestError]]]:
        done: list[Sequence] = []
        failed: list[tuple[Sequence, RequestError]] = []
        parts: list[Tensor] = []
        for sequence in batch:
            ok, outputs, errors = self._alone_on_error([sequence], run)
            done += ok
            failed += errors
            parts += [] if outputs is None else [outputs]
        return done, _stack(parts), failed

    def _step(self, batch: list[Sequence]) -> Tensor:
        return self._stepper.step(self._next_inputs(batch), [sequence.slot for sequence in batch])

    def _read(self, batch: list[Sequence], steps: dict[Sequence, int], *, every: bool) -> Tensor:
        parts = [s.inputs[s.position : s.position + steps[s]] for s in batch]
        return self._reader.read(parts, [sequence.slot for sequence in batch], every=every)

    def _next_inputs(self, batch: list[Sequence]) -> Tensor:
        if self._kind == "tokens":
            tokens = [s.last_token if s.position >= len(s.inputs) else int(s.inputs[s.position]) for s in batch]
            return torch.tensor(tokens, device=self.device)
        features = np.empty((len(batch), self.model.shape.input_size), np.float32)
        for row, sequence in enumerate(batch):
            features[row] = sequence.inputs[sequence.position]
        return torch.from_numpy(features).to(self.device)

    def _blank_inputs(self, *shape: int) -> NDArray[np.generic]:
        if self._kind == "tokens":
            return np.zeros(shape, np.int64)
        return np.zeros((*shape, self.model.shape.input_size), np.float32)

    @property
    def _kind(self) -> Literal["tokens", "features"]:
        return self.model.shape.input


def _stack(parts: list[Tensor]) -> Tensor | None:
    """Rows of single calls as one batch; rows of different lengths are padded."""
    if not parts:
        return None
    if parts[0].dim() < 3:
        return torch.cat(parts)
    widest = max(part.shape[1] for part in parts)
    return torch.cat([torch.nn.functional.pad(part, (0, 0, 0, widest - part.shape[1])) for part in parts])


def _model_failed(exc: Exception) -> RequestError:
    return RequestError(
        f"The model failed on this input ({type(exc).__name__}); the server's log has the details. "
        "Other requests are not affected. Check the input against GET /v1/models.",
        status=500,
        code="model_failed",
    )
