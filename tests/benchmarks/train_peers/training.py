"""What every contender of bench_train.py does the same: the model, its loss, and the clock. Knows no contender.

A contender's file calls `answer(rate)`; the request is JSON on standard input, the answer JSON on the last line of standard
output.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

import numpy as np
import pyarrow.fs
import torch
from torch import Tensor, nn
from torch.nn import functional

LEARNING_RATE = 0.001
CLIP_NORM = 1.0


@dataclass(frozen=True)
class Request:
    """One contender's work."""

    parquet: str
    """`bucket/key` of the Parquet file; its column `tokens` holds lists of ids."""
    endpoint: str
    access_key: str
    secret_key: str
    folder: str
    """An empty directory on a local disk."""
    vocabulary: int
    width: int
    """Of the embedding and of the LSTM."""
    batch: int
    steps: int
    """Updates: one pass over the data."""
    warm: int
    """Updates at the beginning that are not counted."""

    @property
    def store(self) -> pyarrow.fs.S3FileSystem:
        url = urlsplit(self.endpoint)
        return pyarrow.fs.S3FileSystem(
            access_key=self.access_key,
            secret_key=self.secret_key,
            endpoint_override=url.netloc,
            scheme=url.scheme,
            region="us-east-1",
        )


class LanguageModel(nn.Module):
    """Ids in, logits of the next id out: the same layers as `model: {cell: lstm}`."""

    def __init__(self, vocabulary: int, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.lstm = nn.LSTM(width, width, batch_first=True)
        self.output = nn.Linear(width, vocabulary)

    def forward(self, ids: Tensor) -> Tensor:
        return self.output(self.lstm(self.embedding(ids))[0])


class Meter:
    """Real tokens a second behind the warm updates."""

    def __init__(self, warm: int) -> None:
        self._warm = warm
        self._steps = 0
        self._tokens = 0
        self._begin_s = 0.0
        self._end_s = 0.0

    def stepped(self, tokens: int) -> None:
        """An update is done; it had so many real tokens."""
        self._steps += 1
        self._end_s = time.perf_counter()
        if self._steps == self._warm:
            self._begin_s = self._end_s
        elif self._steps > self._warm:
            self._tokens += tokens

    @property
    def rate(self) -> float:
        return self._tokens / (self._end_s - self._begin_s)


def pad(rows: Sequence[np.ndarray]) -> tuple[Tensor, Tensor]:
    """Ids [B, T], zeros behind each row's end, and lengths [B]: the collate function that one writes with torch's means."""
    tensors = [torch.from_numpy(np.asarray(row).astype(np.int64)) for row in rows]
    lengths = torch.tensor([len(tensor) for tensor in tensors])
    return nn.utils.rnn.pad_sequence(tensors, batch_first=True), lengths


def loss_of(model: nn.Module, ids: Tensor, lengths: Tensor) -> Tensor:
    """Mean cross entropy of the next id over the real steps."""
    targets = ids[:, 1:].masked_fill(torch.arange(1, ids.shape[1]) >= lengths[:, None], -100)
    return functional.cross_entropy(model(ids[:, :-1]).flatten(0, 1), targets.flatten())


def read_request() -> Request:
    torch.set_num_threads(1)
    return Request(**json.load(sys.stdin))


def answer(rate: float) -> None:
    """Print and leave: how a contender ends is not measured."""
    print("\n" + json.dumps({"tokens_s": rate}), flush=True)
    os._exit(0)
