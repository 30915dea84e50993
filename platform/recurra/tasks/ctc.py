"""From the outputs of connectionist temporal classification (Graves et al. 2006) to symbols: greedy, and prefix beam search."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from recurra.tasks.ngram import NgramModel

BLANK = 0
_NEVER = float("-inf")
_LEAST = math.log(1e-4)
"""Log probability below which a symbol is not tried at a frame."""

Prefix = tuple[int, ...]


@dataclass(frozen=True)
class Mixing:
    """How a language model has a say: log p + weight * log p_lm + bonus for each symbol."""

    weight: float
    bonus: float
    next_logs: Callable[[Prefix], NDArray[np.float64]]
    """[V] natural logarithms of what may follow a prefix."""


def greedy(logs_TK: NDArray[np.floating]) -> list[int]:
    """The likeliest symbol of each frame, repeats and blanks taken out."""
    path = logs_TK.argmax(1)
    changed = np.append(True, path[1:] != path[:-1])
    return [int(symbol) for symbol in path[changed] if symbol != BLANK]


def prefix_search(
    logs_TK: NDArray[np.floating], beams: int, mixing: Mixing | None = None
) -> list[tuple[list[int], float]]:
    """The likeliest symbol sequences, all of their paths summed (Hannun et al. 2014, arXiv 1408.2873, algorithm 1).

    Args:
        logs_TK: Log probabilities of each frame.
        beams: Prefixes kept after each frame.
        mixing: A language model; None = acoustics alone.

    Returns:
        Up to `beams` sequences with their scores (natural logarithms), best first.
    """
    alive: dict[Prefix, tuple[float, float]] = {(): (0.0, _NEVER)}  # log p that ends in a blank, and in its symbol
    said: dict[Prefix, float] = {(): 0.0}  # what the language model adds
    for logs_K in logs_TK:
        tried = [int(k) for k in np.flatnonzero(logs_K > _LEAST) if k != BLANK]
        following: dict[Prefix, tuple[float, float]] = {}
        for prefix, (blank, symbol) in alive.items():
            both = _add(blank, symbol)
            _put(following, prefix, both + float(logs_K[BLANK]), _NEVER)
            if prefix:
                _put(following, prefix, _NEVER, symbol + float(logs_K[prefix[-1]]))
            for k in tried:
                start = blank if prefix and k == prefix[-1] else both
                longer = (*prefix, k)
                if mixing is not None and longer not in said:
                    said[longer] = said[prefix] + mixing.weight * float(mixing.next_logs(prefix)[k]) + mixing.bonus
                _put(following, longer, _NEVER, start + float(logs_K[k]))
        # A doubled symbol whose blank has not come yet has no path so far.
        possible = [prefix for prefix, ends in following.items() if max(ends) > _NEVER]
        best = sorted(possible, key=lambda one: _add(*following[one]) + said.get(one, 0.0), reverse=True)[:beams]
        alive = {prefix: following[prefix] for prefix in best}
    return [(list(prefix), _add(*ends) + said.get(prefix, 0.0)) for prefix, ends in alive.items()]


class NextSymbols:
    """What an n-gram model expects after a prefix; remembers what it was asked.

    Args:
        model: Counted over sequences that begin with `first`.
        first: Token before each sequence.
    """

    def __init__(self, model: NgramModel, first: int) -> None:
        self._model = model
        self._first = first
        self._known: dict[Prefix, NDArray[np.float64]] = {}

    def __call__(self, prefix: Prefix) -> NDArray[np.float64]:
        order = self._model.order
        context = (self._first, *prefix)[-order:] if order else (self._first,)
        # At the start of a sequence the model sees the first token repeated, as it did when it counted.
        key = (*(self._first,) * (order - len(context)), *context)
        if key not in self._known:
            self._known[key] = np.log(self._model.following(key))
        return self._known[key]


def _put(table: dict[Prefix, tuple[float, float]], prefix: Prefix, blank: float, symbol: float) -> None:
    before = table.get(prefix, (_NEVER, _NEVER))
    table[prefix] = (_add(before[0], blank), _add(before[1], symbol))


def _add(one: float, other: float) -> float:
    """log(exp(one) + exp(other))."""
    high, low = max(one, other), min(one, other)
    return high if low == _NEVER else high + math.log1p(math.exp(low - high))


def count_ngrams(sequences: Sequence[Sequence[int]], size: int, order: int, first: int) -> NextSymbols:
    """A language model of symbol sequences, each with `first` before it."""
    rows = [np.array([first, *sequence], np.int64) for sequence in sequences]
    return NextSymbols(NgramModel(rows, size, order), first)
