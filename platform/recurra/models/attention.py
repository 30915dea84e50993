"""Attention of one query over the states of a sequence."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

MULTI_HEAD_WIDTH = 64
"""Widest head of multi-head attention, where the size can be divided so."""


class Attention(nn.Module, ABC):
    """A query and memories in, their weighted mean out.

    Args:
        query_size: Numbers in a query.
        memory_size: Numbers in a memory (H).
    """

    def __init__(self, query_size: int, memory_size: int) -> None:
        super().__init__()
        self.query_size = query_size
        self.memory_size = memory_size

    @abstractmethod
    def forward(self, query_BH: Tensor, memory_BTH: Tensor, mask_BT: Tensor) -> tuple[Tensor, Tensor]:
        """`context_BH` and `weights_BT`, which sum to 1 over the True steps of the mask; all 0 where no step is True."""


class AdditiveAttention(Attention):
    """score = v . tanh(W query + U memory) (Bahdanau, Cho, Bengio 2015, arXiv 1409.0473, appendix A.1.2)."""

    def __init__(self, query_size: int, memory_size: int) -> None:
        super().__init__(query_size, memory_size)
        self.query = nn.Linear(query_size, memory_size, bias=False)
        self.memory = nn.Linear(memory_size, memory_size)
        self.score = nn.Linear(memory_size, 1, bias=False)

    def forward(self, query_BH: Tensor, memory_BTH: Tensor, mask_BT: Tensor) -> tuple[Tensor, Tensor]:
        mixed_BTH = (self.query(query_BH)[:, None] + self.memory(memory_BTH)).tanh()
        weights_BT = masked_softmax(self.score(mixed_BTH)[:, :, 0], mask_BT)
        return torch.bmm(weights_BT[:, None], memory_BTH)[:, 0], weights_BT


class MultiplicativeAttention(Attention):
    """score = query . W memory (Luong, Pham, Manning 2015, arXiv 1508.04025, "general")."""

    def __init__(self, query_size: int, memory_size: int) -> None:
        super().__init__(query_size, memory_size)
        self.query = nn.Linear(query_size, memory_size, bias=False)

    def forward(self, query_BH: Tensor, memory_BTH: Tensor, mask_BT: Tensor) -> tuple[Tensor, Tensor]:
        scores_BT = torch.bmm(memory_BTH, self.query(query_BH)[:, :, None])[:, :, 0]
        weights_BT = masked_softmax(scores_BT, mask_BT)
        return torch.bmm(weights_BT[:, None], memory_BTH)[:, 0], weights_BT


class MultiHeadAttention(Attention):
    """Scaled dot products in several subspaces (Vaswani et al. 2017, arXiv 1706.03762); the weights are the heads' mean."""

    def __init__(self, query_size: int, memory_size: int) -> None:
        super().__init__(query_size, memory_size)
        self.heads = _head_count(memory_size)
        self.query = nn.Linear(query_size, memory_size)
        self.key = nn.Linear(memory_size, memory_size)
        self.value = nn.Linear(memory_size, memory_size)
        self.output = nn.Linear(memory_size, memory_size)

    def forward(self, query_BH: Tensor, memory_BTH: Tensor, mask_BT: Tensor) -> tuple[Tensor, Tensor]:
        batch, steps, size = memory_BTH.shape
        split = (self.heads, size // self.heads)
        query = self.query(query_BH).view(batch, 1, *split).transpose(1, 2)
        key = self.key(memory_BTH).view(batch, steps, *split).transpose(1, 2)
        value = self.value(memory_BTH).view(batch, steps, *split).transpose(1, 2)
        scores = (query @ key.transpose(2, 3)) * split[1] ** -0.5
        weights = masked_softmax(scores, mask_BT[:, None, None])
        context_BH = (weights @ value).transpose(1, 2).reshape(batch, size)
        return self.output(context_BH), weights.mean(1)[:, 0]


class AttentionPooling(nn.Module):
    """A sequence as one vector: the last output asks all outputs; both are mixed as in Luong et al. 2015, equation 5."""

    def __init__(self, kind: str, size: int) -> None:
        super().__init__()
        self.attention = ATTENTIONS[kind](size, size)
        self.mix = nn.Linear(2 * size, size)

    def forward(self, last_BH: Tensor, y_BTH: Tensor, mask_BT: Tensor) -> Tensor:
        """[B, H], in (-1, 1)."""
        context_BH, _ = self.attention(last_BH, y_BTH, mask_BT)
        mixed_BH: Tensor = self.mix(torch.cat([context_BH, last_BH], 1)).tanh()
        return mixed_BH


ATTENTIONS: dict[str, type[Attention]] = {
    "additive": AdditiveAttention,
    "multiplicative": MultiplicativeAttention,
    "multi_head": MultiHeadAttention,
}


def masked_softmax(scores: Tensor, mask: Tensor) -> Tensor:
    """Softmax over the last axis where the mask is True; 0 elsewhere, and everywhere in a row without a True."""
    lowest = torch.finfo(scores.dtype).min
    return scores.masked_fill(~mask, lowest).softmax(-1).masked_fill(~mask, 0)


def _head_count(size: int) -> int:
    """The most heads that still have MULTI_HEAD_WIDTH numbers each and divide `size`, up to 8; small sizes get 4 or fewer."""
    wanted = min(8, max(size // MULTI_HEAD_WIDTH, 4))
    return next(heads for heads in range(min(wanted, size), 0, -1) if size % heads == 0)
