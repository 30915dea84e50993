"""Texts that are kept as they are, once a sequence, in a batch: as token ids to learn from, as bytes to compare with."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from recurra.data.vocabulary import Vocabulary


def pad_ids(rows: Sequence[Sequence[int]], shortest: int = 1) -> tuple[Tensor, Tensor]:
    """[B, U] int64 padded with 0, and [B] int64 lengths; U is at least `shortest`."""
    lengths = [len(row) for row in rows]
    padded = np.zeros((len(rows), max([*lengths, shortest])), np.int64)
    for index, row in enumerate(rows):
        padded[index, : len(row)] = row
    return torch.from_numpy(padded), torch.tensor(lengths, dtype=torch.int64)


def encode_all(vocabulary: Vocabulary, texts: Sequence[str]) -> list[list[int]]:
    """Ids of each text."""
    return [vocabulary.encode(text).tolist() for text in texts]


def texts_to_bytes(texts: Sequence[str]) -> Tensor:
    """[B, S] the texts in UTF-8, padded with 0: a tensor, which can go where the batch goes."""
    return pad_ids([list(text.encode("utf-8", "replace")) for text in texts])[0].to(torch.uint8)


def bytes_to_texts(data_BS: Tensor) -> list[str]:
    """What `texts_to_bytes` was given."""
    return [bytes(row).rstrip(b"\0").decode("utf-8", "replace") for row in data_BS.cpu().numpy()]
