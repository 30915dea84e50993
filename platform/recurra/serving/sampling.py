"""Next tokens from logits, for a whole batch at once. A row's token depends on its own logits, options and position
alone: neither on its neighbours nor on how many there are."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

U64 = np.uint64
GOLDEN = U64(0x9E3779B97F4A7C15)


@dataclass(frozen=True, slots=True)
class Sampling:
    """How one sequence is to be continued."""

    max_tokens: int
    """Tokens to generate, at least 1."""
    temperature: float = 1.0
    """0 = always the likeliest token."""
    top_p: float = 1.0
    """Choose among the likeliest tokens whose probabilities sum to at least this."""
    top_k: int = 0
    """Choose among so many likeliest tokens; 0 = all."""
    seed: int = 0
    """Equal seeds give equal tokens for equal inputs, whatever else the server does."""
    stop: tuple[str, ...] = ()
    """Texts that end the sequence; they are not part of the answer."""
    stop_tokens: frozenset[int] = field(default_factory=frozenset)
    """Tokens that end the sequence."""
    logprobs: int | None = None
    """None, or how many likeliest tokens to report beside each chosen one (0 = the chosen one alone)."""
    position: int = 0
    """Tokens that were generated before, where this goes on with an interrupted sequence."""


class SamplingTable:
    """The options of every slot as arrays, so that one batch of them is one fancy index."""

    def __init__(self, slots: int) -> None:
        self.temperature = np.zeros(slots)
        self.top_p = np.ones(slots)
        self.top_k = np.zeros(slots, np.int64)
        self.seed = np.zeros(slots, U64)
        self.position = np.zeros(slots, U64)
        """Tokens generated so far."""

    def set(self, slot: int, sampling: Sampling) -> None:
        self.temperature[slot] = sampling.temperature
        self.top_p[slot] = sampling.top_p
        self.top_k[slot] = sampling.top_k
        self.seed[slot] = U64(sampling.seed & 0xFFFFFFFFFFFFFFFF)
        self.position[slot] = sampling.position

    def choose(self, logits_BK: Tensor, slots: NDArray[np.int64]) -> Tensor:
        """Tokens [B] int64 of some slots, on the CPU; their positions move on by one."""
        temperature = self.temperature[slots]
        drawn = np.flatnonzero(temperature > 0)
        if len(drawn) == len(slots):
            tokens_B = self._draw(logits_BK, temperature, slots)
        else:
            tokens_B = logits_BK.argmax(1)
            if len(drawn):
                rows = torch.from_numpy(drawn).to(logits_BK.device)
                tokens_B[rows] = self._draw(logits_BK.index_select(0, rows), temperature[drawn], slots[drawn])
        self.position[slots] += U64(1)
        return tokens_B.cpu()

    def _draw(self, logits_BK: Tensor, temperature: NDArray[np.float64], slots: NDArray[np.int64]) -> Tensor:
        uniform = uniforms(self.seed[slots], self.position[slots])
        return draw(logits_BK, temperature, self.top_p[slots], self.top_k[slots], uniform)


def uniforms(seed: NDArray[np.uint64], position: NDArray[np.uint64]) -> NDArray[np.float64]:
    """One number in [0, 1) for each (seed, position): a hash, so it needs no generator whose state must be kept."""
    with np.errstate(over="ignore"):
        bits = _mix(_mix(seed + GOLDEN) + (position + U64(1)) * GOLDEN)
    return np.asarray((bits >> U64(11)).astype(np.float64) * 2.0**-53)


def draw(
    logits_BK: Tensor,
    temperature: NDArray[np.float64],
    top_p: NDArray[np.float64],
    top_k: NDArray[np.int64],
    uniform: NDArray[np.float64],
) -> Tensor:
    """Tokens [B] by inverting the cumulative distribution at `uniform`, over tokens sorted by probability.

    A row with neither top_p nor top_k is inverted unsorted, which is cheaper and depends on that row alone, too.
    """
    cut = (top_p < 1) | (top_k > 0)
    if not cut.any():
        return _invert(logits_BK, temperature, uniform, None)
    tokens_B = torch.empty(logits_BK.shape[0], dtype=torch.int64, device=logits_BK.device)
    for rows_of, narrowed in ((~cut, False), (cut, True)):
        rows = np.flatnonzero(rows_of)
        if len(rows):
            index = torch.from_numpy(rows).to(logits_BK.device)
            limits = (top_p[rows], top_k[rows]) if narrowed else None
            tokens_B[index] = _invert(logits_BK.index_select(0, index), temperature[rows], uniform[rows], limits)
    return tokens_B


def _invert(
    logits_BK: Tensor,
    temperature: NDArray[np.float64],
    uniform: NDArray[np.float64],
    limits: tuple[NDArray[np.float64], NDArray[np.int64]] | None,
) -> Tensor:
    probs_BK = torch.softmax(logits_BK.double() / _column(temperature, logits_BK), 1)
    order_BK = None
    if limits is not None:
        probs_BK, order_BK = probs_BK.sort(dim=1, descending=True, stable=True)
        probs_BK = probs_BK * _kept(probs_BK, _column(limits[0], logits_BK), limits[1])
    total_BK = probs_BK.cumsum(1)
    target_B1 = _column(uniform, logits_BK) * total_BK[:, -1:]
    place_B1 = torch.searchsorted(total_BK, target_B1, right=True)
    last_B1 = torch.searchsorted(total_BK, total_BK[:, -1:].contiguous())
    place_B1 = torch.minimum(place_B1, last_B1)
    return (place_B1 if order_BK is None else order_BK.gather(1, place_B1))[:, 0]


def log_probabilities(logits_BK: Tensor, tokens_B: Tensor, alternatives: int) -> list[tuple[float, dict[int, float]]]:
    """Natural logarithms, before temperature and cuts: of each chosen token, and of the likeliest ones by token."""
    log_BK = torch.log_softmax(logits_BK.double(), 1).cpu()
    chosen_B = log_BK.gather(1, tokens_B[:, None])[:, 0].tolist()
    best = log_BK.topk(min(alternatives, log_BK.shape[1]), 1)
    pairs = zip(chosen_B, best.indices.tolist(), best.values.tolist(), strict=True)
    return [(value, dict(zip(tokens, values, strict=True))) for value, tokens, values in pairs]


def find_stop(text: str, stops: tuple[str, ...], start: int = 0) -> int | None:
    """Where the first of the stop texts begins in `text`, looking from `start`; None = nowhere."""
    places = [place for stop in stops if (place := text.find(stop, max(0, start - len(stop)))) >= 0]
    return min(places, default=None)


def _kept(sorted_BK: Tensor, top_p_B1: Tensor, top_k: NDArray[np.int64]) -> Tensor:
    before_BK = sorted_BK.cumsum(1) - sorted_BK
    limit_B1 = torch.from_numpy(np.where(top_k > 0, top_k, sorted_BK.shape[1]))[:, None].to(sorted_BK.device)
    rank_K = torch.arange(sorted_BK.shape[1], device=sorted_BK.device)
    first_K = rank_K == 0  # the likeliest token stays, whatever top_p is
    return ((before_BK < top_p_B1) | first_K) & (rank_K < limit_B1)


def _column(values: NDArray[np.float64], like: Tensor) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values))[:, None].to(like.device)


def _mix(value: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of splitmix64 (Steele, Lea, Flood 2014)."""
    value = (value ^ (value >> U64(30))) * U64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> U64(27))) * U64(0x94D049BB133111EB)
    return np.asarray(value ^ (value >> U64(31)))
