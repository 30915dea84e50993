"""Beam search over any decoder that steps: rows of a batch at once, each as if it were alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from recurra.models.state import State, select_rows

Advance = Callable[[Tensor, State], tuple[Tensor, State]]
"""Last tokens [R] and states of R rows -> log probabilities [R, V] of the next token and the new states."""
_NEVER = -1e30
"""Score of a hypothesis that there is not; finite, so that no arithmetic on it gives a NaN."""


@dataclass(frozen=True)
class Search:
    """How hypotheses are looked for."""

    beams: int
    """Hypotheses kept in each step (N); 1 = greedy."""
    longest: int
    """Tokens of a hypothesis at most (L)."""
    length_penalty: float
    """Exponent of ((5 + length) / 6), which a log probability is divided by (Wu et al. 2016, arXiv 1609.08144, eq. 14)."""
    end: int
    """Token that begins and ends a sequence."""


@dataclass(frozen=True)
class Hypotheses:
    """The N best of each row, best first."""

    tokens_BNL: Tensor
    """int64, zero behind each hypothesis' length; `end` is not among them."""
    lengths_BN: Tensor
    """int64; -1 where there are fewer than N."""
    scores_BN: Tensor
    """Log probability over length penalty."""


def beam_search(advance: Advance, state: State, limits_B: Tensor, search: Search) -> Hypotheses:
    """Search with N hypotheses a row until N of them have ended, or to each row's own limit.

    Args:
        advance: One step of the decoder; called with B * N rows, those of a sequence next to each other.
        state: [B * N, ...] where each row starts from.
        limits_B: Tokens of each row at most, 1 to `search.longest`.
        search: Width, penalty, end.
    """
    batch, device, beams = len(limits_B), limits_B.device, search.beams
    alive_BNL = torch.zeros(batch, beams, search.longest, dtype=torch.int64, device=device)
    scores_BN = torch.full((batch, beams), _NEVER, device=device)
    scores_BN[:, 0] = 0.0
    ended = Hypotheses(alive_BNL, torch.full_like(alive_BNL[:, :, 0], -1), torch.full_like(scores_BN, _NEVER))
    last_R = torch.full((batch * beams,), search.end, device=device)
    first_B1 = torch.arange(batch, device=device)[:, None] * beams
    over_B = torch.zeros(batch, dtype=torch.bool, device=device)
    for t in range(search.longest):
        logs_RV, state = advance(last_R, state)
        sums_BC = (scores_BN[:, :, None] + logs_RV.view(batch, beams, -1)).flatten(1)
        best_BC, index_BC = sums_BC.topk(min(2 * beams, sums_BC.shape[1]), 1)
        parent_BC, token_BC = index_BC // logs_RV.shape[1], index_BC % logs_RV.shape[1]
        ends_BC = token_BC == search.end
        # Only what would have stayed in the beam may end: a worse end is none that the search believes in.
        closing_BN = torch.where(ends_BC[:, :beams] & ~over_B[:, None], best_BC[:, :beams], _NEVER)
        ended = _merge(ended, _rows(alive_BNL, parent_BC[:, :beams]), t, closing_BN, search)
        scores_BN, kept_BN = best_BC.masked_fill(ends_BC, _NEVER).topk(beams, 1)
        parent_BN, token_BN = parent_BC.gather(1, kept_BN), token_BC.gather(1, kept_BN)
        alive_BNL = _rows(alive_BNL, parent_BN)
        alive_BNL[:, :, t] = token_BN
        cut_B = (limits_B == t + 1) & ~over_B
        ended = _merge(ended, alive_BNL, t + 1, torch.where(cut_B[:, None], scores_BN, _NEVER), search)
        over_B = over_B | cut_B | (ended.lengths_BN >= 0).all(1)
        if bool(over_B.all()):
            break
        state = select_rows(state, (first_B1 + parent_BN).flatten())
        last_R = token_BN.flatten()
    return ended


def _rows(tokens_BNL: Tensor, parent_BN: Tensor) -> Tensor:
    return tokens_BNL.gather(1, parent_BN[:, :, None].expand(-1, -1, tokens_BNL.shape[2]))


def _merge(ended: Hypotheses, tokens_BNL: Tensor, length: int, sums_BN: Tensor, search: Search) -> Hypotheses:
    """The N best of those that have ended and those that end now, whose sum of log probabilities is above `_NEVER`."""
    there_BN = sums_BN > _NEVER / 2
    penalty = ((5 + max(length, 1)) / 6) ** search.length_penalty
    scores_BM = torch.cat([ended.scores_BN, torch.where(there_BN, sums_BN / penalty, _NEVER)], 1)
    lengths_BM = torch.cat([ended.lengths_BN, torch.where(there_BN, length, -1)], 1)
    scores_BN, index_BN = scores_BM.topk(search.beams, 1)
    both = torch.cat([ended.tokens_BNL, tokens_BNL], 1)
    return Hypotheses(_rows(both, index_BN), lengths_BM.gather(1, index_BN), scores_BN)
