"""Tokens in, vectors out; and logits from the same weights when they are tied."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class TokenEmbedding(nn.Module):
    """A vector for each token.

    Args:
        tokens: Size of the vocabulary.
        size: Width of a vector.
        drop_prob: Chance to drop a token, everywhere in the batch (Gal and Ghahramani 2016, arXiv 1512.05287, 4.2).
        std: Standard deviation of the start; None = 1 / sqrt(size).
    """

    def __init__(self, tokens: int, size: int, drop_prob: float, std: float | None = None) -> None:
        super().__init__()
        self.drop_prob = drop_prob
        self.weight = nn.Parameter(torch.empty(tokens, size).normal_(std=size**-0.5 if std is None else std))

    def forward(self, tokens: Tensor) -> Tensor:
        """[...] int64 to [..., size]."""
        if not self.training or self.drop_prob == 0:
            return functional.embedding(tokens, self.weight)
        kept = functional.dropout(self.weight.new_ones(self.weight.shape[0], 1), self.drop_prob)
        return functional.embedding(tokens, self.weight) * functional.embedding(tokens, kept)


class TiedHead(nn.Module):
    """Logits as products with the embedding's vectors (Press and Wolf 2017, arXiv 1608.05859); owns only the bias."""

    def __init__(self, tokens: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(tokens))

    def forward(self, y: Tensor, embedding: TokenEmbedding) -> Tensor:
        return functional.linear(y, embedding.weight, self.bias)
