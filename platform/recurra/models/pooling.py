"""How the outputs of a sequence become one vector, with running values in the state, so that such a model can step."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from recurra.models.state import State, StateSpec, StateTensor


class Pooling(nn.Module, ABC):
    """Base of the poolings; `size` is the width of an output (H)."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def spec(self, dtype: torch.dtype) -> StateSpec:
        """Running value, and how many steps it holds."""
        name = str(dtype).removeprefix("torch.")
        return StateSpec((StateTensor("value", (self.size,), name), StateTensor("count", (), "int64")))

    def zero_state(self, batch: int, dtype: torch.dtype, device: torch.device | str) -> State:
        return {
            t.name: torch.zeros(batch, *t.shape, dtype=getattr(torch, t.dtype), device=device)
            for t in self.spec(dtype).tensors
        }

    @abstractmethod
    def forward(self, y_BTH: Tensor, last_BH: Tensor, mask_BT: Tensor, state: State) -> tuple[Tensor, State]:
        """The pooled [B, H] over the state's steps and those where the mask is True, and the new state."""


class LastPooling(Pooling):
    """The last output; keeps nothing."""

    def spec(self, dtype: torch.dtype) -> StateSpec:
        return StateSpec(())

    def forward(self, y_BTH: Tensor, last_BH: Tensor, mask_BT: Tensor, state: State) -> tuple[Tensor, State]:
        return last_BH, {}


class MeanPooling(Pooling):
    """The mean of all outputs; its running value is their sum."""

    def forward(self, y_BTH: Tensor, last_BH: Tensor, mask_BT: Tensor, state: State) -> tuple[Tensor, State]:
        total_BH = state["value"] + y_BTH.masked_fill(~mask_BT[:, :, None], 0).sum(1).to(state["value"].dtype)
        count_B = state["count"] + mask_BT.sum(1)
        return total_BH / count_B.clamp(min=1)[:, None], {"value": total_BH, "count": count_B}


class MaxPooling(Pooling):
    """The largest value of each unit; zero before the first step."""

    def forward(self, y_BTH: Tensor, last_BH: Tensor, mask_BT: Tensor, state: State) -> tuple[Tensor, State]:
        value, count = state["value"], state["count"] + mask_BT.sum(1)
        lowest = torch.finfo(value.dtype).min
        past_BH = value.masked_fill((state["count"] == 0)[:, None], lowest)
        window_BTH = y_BTH.to(value.dtype).masked_fill(~mask_BT[:, :, None], lowest)
        highest_BH = torch.cat([past_BH[:, None], window_BTH], 1).amax(1).masked_fill((count == 0)[:, None], 0)
        return highest_BH, {"value": highest_BH, "count": count}


POOLINGS: dict[str, type[Pooling]] = {"last": LastPooling, "mean": MeanPooling, "max": MaxPooling}
