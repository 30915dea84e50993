"""Recurrent state that is carried from one window of a stream to the next, kept by global lane number."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recurra.models.sequence import Model
from recurra.models.state import State, detach, select_rows


class LaneStates:
    """The states of one rank's lanes after their last windows.

    Which lanes a rank has may change when the number of ranks does: `load` takes the states of any lanes, and
    `take` picks those that a batch asks for.
    """

    def __init__(self, model: Model, device: str) -> None:
        self._model = model
        self._device = device
        self._lanes: NDArray[np.int64] = np.zeros(0, np.int64)
        self._state: State = {}

    def take(self, lanes: NDArray[np.int64]) -> State:
        """The states [B, ...] that these lanes start their windows with, without gradients."""
        if np.array_equal(lanes, self._lanes):
            return self._state
        start = detach(self._model.zero_state(len(lanes), self._device))
        if not len(self._lanes):
            return start
        row_of = {int(lane): row for row, lane in enumerate(self._lanes)}
        known = [(row, row_of[int(lane)]) for row, lane in enumerate(lanes) if int(lane) in row_of]
        if not known:
            return start
        into, source = (torch.tensor(rows, device=self._device) for rows in zip(*known, strict=True))
        found = select_rows(self._state, source)
        return {name: value.index_copy(0, into, found[name]) for name, value in start.items()}

    def put(self, lanes: NDArray[np.int64], state: State) -> None:
        """Keep the states that these lanes ended their windows with; gradients are cut here."""
        self._lanes, self._state = lanes, detach(state)

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint keeps: the lane numbers under `lanes`, and each state tensor; nothing before a first `put`."""
        if not len(self._lanes):
            return {}
        return {"lanes": torch.from_numpy(self._lanes.copy()), **{f"state.{k}": v for k, v in self._state.items()}}

    def load(self, parts: list[dict[str, Tensor]]) -> None:
        """Take over what `tensors` gave on each rank of the run that wrote a checkpoint."""
        parts = [part for part in parts if part]
        if not parts:
            return
        self._lanes = torch.cat([part["lanes"] for part in parts]).numpy()
        names = [name for name in parts[0] if name != "lanes"]
        self._state = {
            name.removeprefix("state."): torch.cat([part[name] for part in parts]).to(self._device) for name in names
        }
