"""The benchmark's model as a user of plain PyTorch writes it; reads the weights that every server gets."""

from __future__ import annotations

import os

import torch
from safetensors.torch import load_file
from torch import nn


class Classifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(1000, 128)
        self.lstm = nn.LSTM(128, 256, batch_first=True)
        self.head = nn.Linear(256, 2)

    def forward(self, tokens_BT: torch.Tensor) -> torch.Tensor:
        y_BTH, _ = self.lstm(self.embedding(tokens_BT))
        return torch.softmax(self.head(y_BTH[:, -1]), dim=1)


def load() -> Classifier:
    torch.set_num_threads(1)
    model = Classifier().eval()
    model.load_state_dict(load_file(os.environ["BENCH_WEIGHTS"]))
    with torch.inference_mode():
        for batch in (1, 2, 4, 8, 16, 32):
            model(torch.zeros(batch, 32, dtype=torch.int64))
    return model
