"""Interpolated n-gram model over token sequences: the baseline that a language model has to beat. NumPy alone."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from recurra.errors import ConfigError, DataError


@dataclass(frozen=True)
class _Level:
    """Counts after contexts of one length. Keys are contexts, or contexts with a next token, in base V; sorted."""

    pair_keys: NDArray[np.uint64]
    pair_counts: NDArray[np.int64]
    context_keys: NDArray[np.uint64]
    context_counts: NDArray[np.int64]
    context_types: NDArray[np.int64]
    """Different tokens that were seen after each context: Witten-Bell's weight of the shorter context."""


class NgramModel:
    """Witten-Bell interpolation of all contexts of up to `order` tokens, over a uniform distribution.

    p_k(c | context) = (n(context, c) + types(context) * p_(k-1)(c | shorter)) / (n(context) + types(context)).
    Order 3 looks at the three tokens before the one it predicts. The first token of each sequence (bos) is given,
    never predicted; contexts do not reach over the start of a sequence.
    """

    def __init__(self, sequences: Iterable[NDArray[np.integer]], vocabulary_size: int, order: int = 3) -> None:
        if not 0 <= order <= 8 or vocabulary_size ** (order + 1) >= 2**64:
            raise ConfigError(
                f"order is {order} with a vocabulary of {vocabulary_size} tokens, whose {order + 1}-grams do not fit "
                "in 64 bits. Lower the order."
            )
        self.vocabulary_size = vocabulary_size
        self.order = order
        pairs, predicted = self._keys(sequences)
        if not predicted.any():
            raise DataError("No sequence has a second token, so there is nothing to count. Give longer sequences.")
        self._levels = [self._count(pairs[predicted], length) for length in range(order + 1)]

    def probabilities(self, sequences: Iterable[NDArray[np.integer]]) -> NDArray[np.float64]:
        """Probability of every token but the first of each sequence, in order."""
        pairs, predicted = self._keys(sequences)
        return self._probabilities(pairs[predicted])

    def following(self, context: Sequence[int]) -> NDArray[np.float64]:
        """[V] probability of every token after `order` tokens; they sum to 1."""
        key = 0
        for token in context:
            key = key * self.vocabulary_size + token
        return self._probabilities(
            np.arange(self.vocabulary_size, dtype=np.uint64) + np.uint64(key * self.vocabulary_size)
        )

    def _probabilities(self, keys: NDArray[np.uint64]) -> NDArray[np.float64]:
        probability = np.full(keys.size, 1.0 / self.vocabulary_size)
        for length, level in enumerate(self._levels):
            pair = self._suffix(keys, length)
            seen = _look_up(level.context_keys, pair // np.uint64(self.vocabulary_size))
            count = np.where(seen >= 0, level.context_counts[seen], 0)
            types = np.where(seen >= 0, level.context_types[seen], 1)  # 0 + 1 * shorter: an unseen context passes on
            at = _look_up(level.pair_keys, pair)
            both = np.where(at >= 0, level.pair_counts[at], 0)
            probability = (both + types * probability) / (count + types)
        return probability

    def bits_per_token(self, sequences: Iterable[NDArray[np.integer]]) -> float:
        """Cross entropy on held-out sequences: bits per byte when the tokens are bytes."""
        probability = self.probabilities(sequences)
        if not probability.size:
            raise DataError("No held-out sequence has a second token, so there is nothing to predict.")
        return float(-np.log(probability).mean() / math.log(2))

    def _keys(self, sequences: Iterable[NDArray[np.integer]]) -> tuple[NDArray[np.uint64], NDArray[np.bool_]]:
        """(key of the `order` tokens before and at each position, whether that position is predicted)."""
        rows, firsts = [], []
        for tokens in sequences:
            padded = np.concatenate([np.repeat(tokens[:1], self.order), tokens])
            first = np.zeros(padded.size, bool)
            first[: self.order + 1] = True
            rows.append(padded)
            firsts.append(first)
        if not rows:
            return np.zeros(0, np.uint64), np.zeros(0, bool)
        joined = np.concatenate(rows)
        if joined.size and not 0 <= int(joined.min()) <= int(joined.max()) < self.vocabulary_size:
            raise DataError(
                f"Tokens reach from {joined.min()} to {joined.max()}, but the vocabulary has {self.vocabulary_size}. "
                "Give the vocabulary that the dataset was written with."
            )
        values = joined.astype(np.uint64)
        keys = np.zeros(values.size, np.uint64)
        for back in range(self.order, -1, -1):
            keys *= np.uint64(self.vocabulary_size)
            keys[back:] += values[: values.size - back]
        return keys, ~np.concatenate(firsts)

    def _suffix(self, keys: NDArray[np.uint64], length: int) -> NDArray[np.uint64]:
        """Keys cut to the last `length` tokens of context and the token itself."""
        modulus = self.vocabulary_size ** (length + 1)
        return keys % np.uint64(modulus)

    def _count(self, keys: NDArray[np.uint64], length: int) -> _Level:
        pair_keys, pair_counts = np.unique(self._suffix(keys, length), return_counts=True)
        contexts = pair_keys // np.uint64(self.vocabulary_size)  # sorted, since the pairs are
        starts = np.flatnonzero(np.r_[True, contexts[1:] != contexts[:-1]])
        return _Level(
            pair_keys=pair_keys,
            pair_counts=pair_counts,
            context_keys=contexts[starts],
            context_counts=np.add.reduceat(pair_counts, starts),
            context_types=np.diff(np.r_[starts, contexts.size]),
        )


def _look_up(sorted_keys: NDArray[np.uint64], wanted: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Index of each wanted key, -1 where it is absent."""
    at = np.minimum(np.searchsorted(sorted_keys, wanted), sorted_keys.size - 1)
    return np.where(sorted_keys[at] == wanted, at, -1)
