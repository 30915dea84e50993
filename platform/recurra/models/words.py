"""Words as vectors: their own, and one made of how they are spelt, which unknown words have, too."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from recurra.models.embedding import TokenEmbedding
from recurra.models.sequence import Front


@dataclass(frozen=True)
class WordSizes:
    """Of a `WordFront`."""

    words: int
    """Size of the word vocabulary."""
    characters: int
    """Size of the character vocabulary; id 0 is padding."""
    vector: int
    """Width of a word's own vector."""
    filters: int
    """Numbers that are made of a spelling."""
    character_vector: int = 30
    """As in Ma and Hovy 2016."""


class WordFront(Front):
    """A word's vector beside the largest responses of a convolution over its characters (Ma and Hovy 2016, arXiv
    1603.01354, 2.1; windows of three characters).

    Args:
        sizes: Of vocabularies and vectors.
        drop_prob: Chance to drop a word's own vector, everywhere in the batch.
    """

    def __init__(self, sizes: WordSizes, drop_prob: float) -> None:
        super().__init__()
        self.output_size = sizes.vector + sizes.filters
        self.words = TokenEmbedding(sizes.words, sizes.vector, drop_prob)
        self.characters = nn.Embedding(sizes.characters, sizes.character_vector, padding_idx=0)
        self.filters = nn.Conv1d(sizes.character_vector, sizes.filters, kernel_size=3, padding=1)

    def forward(self, inputs: Tensor) -> Tensor:
        """[..., 1 + W] whole numbers (in any type): a word's id and those of its characters, padded with 0."""
        ids = inputs.long()
        letters_NW = ids[..., 1:].reshape(-1, ids.shape[-1] - 1)
        responses_NFW = self.filters(self.characters(letters_NW).transpose(1, 2))
        lowest = torch.finfo(responses_NFW.dtype).min
        # The first character is always looked at, so that a row of padding has no infinity in it.
        real_NW = (letters_NW != 0) | (torch.arange(letters_NW.shape[1], device=ids.device) == 0)
        spelt_NF = responses_NFW.masked_fill(~real_NW[:, None], lowest).amax(2)
        return torch.cat([self.words(ids[..., 0]), spelt_NF.view(*ids.shape[:-1], -1)], -1)
