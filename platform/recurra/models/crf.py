"""Linear-chain conditional random fields: the tags of a sequence scored together (Lafferty, McCallum, Pereira 2001).

A model with a `PairwiseHead` gives at each step a score for every pair of a tag and the tag after it, so that its outputs
hold all that training (forward algorithm) and answering (Viterbi) need: psi(i, j, x) of Ma and Hovy 2016 (arXiv 1603.01354,
equation 6), with transitions that do not depend on x. Everything is in log space.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class PairwiseHead(nn.Module):
    """[..., H] to [..., (K + 1) * K]: at each step the score of tag j after tag i; row K is for the first step.

    Args:
        size: Hidden units (H).
        tags: K.
    """

    def __init__(self, size: int, tags: int) -> None:
        super().__init__()
        self.emission = nn.Linear(size, tags)
        self.transition = nn.Parameter(torch.zeros(tags + 1, tags))

    def forward(self, y: Tensor) -> Tensor:
        scores: Tensor = self.emission(y)[..., None, :] + self.transition
        return scores.flatten(-2)


def pair_scores(outputs: Tensor, tags: int) -> Tensor:
    """[B, T, (K + 1) * K] outputs of a `PairwiseHead` as [B, T, K + 1, K]."""
    return outputs.view(*outputs.shape[:-1], tags + 1, tags)


def path_score(scores_BTIJ: Tensor, tags_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """[B] the unnormalised log score of one path of tags; steps where the mask is False do not count."""
    first_B1 = tags_BT.new_full((tags_BT.shape[0], 1), scores_BTIJ.shape[-1])
    before_BT = torch.cat([first_B1, tags_BT[:, :-1]], 1)
    rows_B1 = torch.arange(tags_BT.shape[0], device=tags_BT.device)[:, None]
    steps_T = torch.arange(tags_BT.shape[1], device=tags_BT.device)
    return (scores_BTIJ[rows_B1, steps_T, before_BT, tags_BT] * mask_BT).sum(1)


def log_partition(scores_BTIJ: Tensor, mask_BT: Tensor) -> Tensor:
    """[B] logarithm of the sum over all paths of exp(score), by the forward algorithm; every row has a first step."""
    alpha_BJ = scores_BTIJ[:, 0, -1]
    for t in range(1, scores_BTIJ.shape[1]):
        following_BJ = (alpha_BJ[:, :, None] + scores_BTIJ[:, t, :-1]).logsumexp(1)
        alpha_BJ = torch.where(mask_BT[:, t, None], following_BJ, alpha_BJ)
    return alpha_BJ.logsumexp(1)


def best_path(scores_BTIJ: Tensor, mask_BT: Tensor, *, begins: bool = True) -> Tensor:
    """[B, T] int64 the path of the highest score (Viterbi 1967); arbitrary where the mask is False.

    Args:
        begins: Whether the sequences start here; else the tag before the first one is the best there can be.
    """
    best_BJ = scores_BTIJ[:, 0, -1] if begins else scores_BTIJ[:, 0, :-1].amax(1)
    pointers = []
    for t in range(1, scores_BTIJ.shape[1]):
        following_BJ, pointer_BJ = (best_BJ[:, :, None] + scores_BTIJ[:, t, :-1]).max(1)
        own_J = torch.arange(pointer_BJ.shape[1], device=pointer_BJ.device)
        best_BJ = torch.where(mask_BT[:, t, None], following_BJ, best_BJ)
        pointers.append(torch.where(mask_BT[:, t, None], pointer_BJ, own_J))
    tag_B = best_BJ.argmax(1)
    path = [tag_B]
    for pointer_BJ in reversed(pointers):
        tag_B = pointer_BJ.gather(1, tag_B[:, None])[:, 0]
        path.append(tag_B)
    return torch.stack(path[::-1], 1)
