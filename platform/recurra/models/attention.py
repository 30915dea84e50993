"""Attention of queries over the states of a sequence."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor, nn

HEAD_WIDTH = 64
"""Width that heads of multi-head attention have, where the size allows it."""


class Memory(NamedTuple):
    """What can be attended to, made once for all queries."""

    keys_BTK: Tensor
    values_BTH: Tensor


class Attention(nn.Module, ABC):
    """Queries and memories in, weighted means of the memories out.

    Args:
        query_size: Numbers in a query.
        memory_size: Numbers in a memory (H), in a key and in a context.
    """

    def __init__(self, query_size: int, memory_size: int) -> None:
        super().__init__()
        self.query_size = query_size
        self.memory_size = memory_size

    @abstractmethod
    def prepare(self, memory_BTH: Tensor) -> Memory:
        """Keys and values of states."""

    @abstractmethod
    def attend(self, query_BQH: Tensor, memory: Memory, mask_BQT: Tensor) -> tuple[Tensor, Tensor]:
        """Contexts [B, Q, H], and weights [B, Q, T] that sum to 1 over the True steps of the mask, or are all 0."""

    def forward(self, query_BH: Tensor, memory_BTH: Tensor, mask_BT: Tensor) -> tuple[Tensor, Tensor]:
        """One query a row: `context_BH` and `weights_BT`."""
        context_B1H, weights_B1T = self.attend(query_BH[:, None], self.prepare(memory_BTH), mask_BT[:, None])
        return context_B1H[:, 0], weights_B1T[:, 0]


class AdditiveAttention(Attention):
    """score = v . tanh(W query + U memory) (Bahdanau, Cho, Bengio 2015, arXiv 1409.0473, appendix A.1.2)."""

    def __init__(self, query_size: int, memory_size: int) -> None:
        super().__init__(query_size, memory_size)
        self.query = nn.Linear(query_size, memory_size, bias=False)
        self.key = nn.Linear(memory_size, memory_size)
        self.score = nn.Linear(memory_size, 1, bias=False)

    def prepare(self, memory_BTH: Tensor) -> Memory:
        return Memory(self.key(memory_BTH), memory_BTH)

    def attend(self, query_BQH: Tensor, memory: Memory, mask_BQT: Tensor) -> tuple[Tensor, Tensor]:
        mixed_BQTH = (self.query(query_BQH)[:, :, None] + memory.keys_BTK[:, None]).tanh()
        weights_BQT = masked_softmax(self.score(mixed_BQTH)[:, :, :, 0], mask_BQT)
        return torch.bmm(weights_BQT, memory.values_BTH), weights_BQT


class MultiplicativeAttention(Attention):
    """score = query . W memory (Luong, Pham, Manning 2015, arXiv 1508.04025, "general")."""

    def __init__(self, query_size: int, memory_size: int) -> None:
        super().__init__(query_size, memory_size)
        self.query = nn.Linear(query_size, memory_size, bias=False)

    def prepare(self, memory_BTH: Tensor) -> Memory:
        return Memory(memory_BTH, memory_BTH)

    def attend(self, query_BQH: Tensor, memory: Memory, mask_BQT: Tensor) -> tuple[Tensor, Tensor]:
        scores_BQT = torch.bmm(self.query(query_BQH), memory.keys_BTK.transpose(1, 2))
        weights_BQT = masked_softmax(scores_BQT, mask_BQT)
        return torch.bmm(weights_BQT, memory.values_BTH), weights_BQT


class MultiHeadAttention(Attention):
    """Scaled dot products in several subspaces (Vaswani et al. 2017, arXiv 1706.03762); weights are the heads' mean."""

    def __init__(self, query_size: int, memory_size: int) -> None:
        super().__init__(query_size, memory_size)
        self.heads = _head_count(memory_size)
        self.query = nn.Linear(query_size, memory_size)
        self.key = nn.Linear(memory_size, memory_size)
        self.value = nn.Linear(memory_size, memory_size)
        self.output = nn.Linear(memory_size, memory_size)

    def prepare(self, memory_BTH: Tensor) -> Memory:
        return Memory(self.key(memory_BTH), self.value(memory_BTH))

    def attend(self, query_BQH: Tensor, memory: Memory, mask_BQT: Tensor) -> tuple[Tensor, Tensor]:
        query, key, value = (self._split(x) for x in (self.query(query_BQH), *memory))
        scores = (query @ key.transpose(2, 3)) * (self.memory_size // self.heads) ** -0.5
        weights = masked_softmax(scores, mask_BQT[:, None])
        context_BQH = (weights @ value).transpose(1, 2).flatten(2)
        return self.output(context_BQH), weights.mean(1)

    def _split(self, x_BTH: Tensor) -> Tensor:
        return x_BTH.view(*x_BTH.shape[:2], self.heads, -1).transpose(1, 2)


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
    """Heads of HEAD_WIDTH numbers, 4 to 8 of them, or the next lower count that divides the size."""
    wanted = min(8, max(size // HEAD_WIDTH, 4), size)
    return next(heads for heads in range(wanted, 0, -1) if size % heads == 0)
