"""A model that reads whole sequences, each from its own row of larger tensors, such as a server's slots.

The engine calls a `Reader` as it calls a `Stepper`, and knows nothing of the cell.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recurra.models.native.reading import StackReading
from recurra.models.sequence import Model
from recurra.models.state import State, put_rows, select_rows
from recurra.models.stepper import StackStepper, Stepper

FEW_ROWS = 8
FEW_THREADS = 2
"""With more of both, torch's kernels share a batch among the threads, of which the native one uses one."""


class Reader(ABC):
    """Reads sequences whose state is in rows of tensors that it shares with its owner. Not for several threads at once."""

    pads: ClassVar[bool]
    """Whether shorter sequences cost as much as the longest one of their batch."""

    @abstractmethod
    def read(self, parts: Sequence[NDArray[np.generic]], rows: Sequence[int], *, every: bool) -> Tensor:
        """As `Model.forward` in eval mode, without gradients: outputs in memory of their own.

        Args:
            parts: Of each sequence the next inputs: token ids [T] int64, or features [T, D] float32; at least one step.
            rows: Where each sequence has its state, which is advanced; no row twice. -1 = it starts anew, and nobody
                wants its state. When the reading fails, no state has changed.
            every: Whether outputs are wanted for all steps, where the model has such.

        Returns:
            [B, K] after each sequence's last step; or [B, T, K], arbitrary in padding.

        Raises:
            IndexError: A token is not in the vocabulary.
        """


def build_reader(model: Model, state: State, blank: int, stepper: Stepper) -> Reader:
    """The fastest reader for a model, with its weights as they are now.

    Args:
        model: In eval mode.
        state: As for `build_stepper`.
        blank: A row of the state that holds, for ever, what every sequence starts from.
        stepper: Of this model and state: where it can be, it shares its matrices.
    """
    plain = PlainReader(model, state, blank)
    if not isinstance(stepper, StackStepper):
        return plain
    return StackReader(StackReading(stepper.exact().stack), plain, blank, per_step=model.shape.per_step)


class PlainReader(Reader):
    """Reads with the model's own `forward`, on copies of the rows; shorter sequences are padded."""

    pads = True

    def __init__(self, model: Model, state: State, blank: int) -> None:
        self._model = model
        self._state = state
        self._blank = blank
        self._device = next(model.parameters()).device
        self._dtype = np.int64 if model.shape.input == "tokens" else np.float32

    def read(self, parts: Sequence[NDArray[np.generic]], rows: Sequence[int], *, every: bool) -> Tensor:
        lengths = [len(part) for part in parts]
        width = max(lengths)
        values = np.zeros((len(parts), width, *parts[0].shape[1:]), self._dtype)
        for row, part in enumerate(parts):
            values[row, : len(part)] = part
        lengths_B = None if min(lengths) == width else torch.tensor(lengths)
        with torch.inference_mode():
            outputs, after = self._model(torch.from_numpy(values).to(self._device), self._states(rows), lengths_B)
            self._write_back(rows, after)
            found = torch.as_tensor(outputs)
            if found.dim() == 2 or every:
                return found
            return found[torch.arange(len(parts)), torch.tensor(lengths) - 1]

    def _states(self, rows: Sequence[int]) -> State | None:
        """States to go on from; None when every sequence starts anew."""
        if all(row < 0 for row in rows):
            return None
        chosen = [row if row >= 0 else self._blank for row in rows]
        return select_rows(self._state, torch.tensor(chosen, device=self._device))

    def _write_back(self, rows: Sequence[int], after: State) -> None:
        holding = [place for place, row in enumerate(rows) if row >= 0]
        if not holding:
            return
        if len(holding) < len(rows):
            after = select_rows(after, torch.tensor(holding, device=self._device))
        own = {name: value.to(self._state[name].dtype) for name, value in after.items()}
        put_rows(self._state, torch.tensor([rows[place] for place in holding], device=self._device), own)


class StackReader(Reader):
    """One native call for everything, and nothing computed for padding."""

    pads = False

    def __init__(self, reading: StackReading, plain: PlainReader, blank: int, *, per_step: bool) -> None:
        self._reading = reading
        self._plain = plain
        self._blank = blank
        self._per_step = per_step

    def read(self, parts: Sequence[NDArray[np.generic]], rows: Sequence[int], *, every: bool) -> Tensor:
        if len(parts) >= FEW_ROWS and torch.get_num_threads() > FEW_THREADS:
            return self._plain.read(parts, rows, every=every)
        starts = [row if row >= 0 else self._blank for row in rows]
        return self._reading(parts, starts, rows, every=every and self._per_step)
