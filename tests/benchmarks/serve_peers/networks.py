"""The benchmark's models as a user of plain PyTorch writes them; they read the weights that every server gets."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_sequence

BATCHES = (1, 2, 4, 8, 16, 32, 64)
START = 0
"""The token with which every text begins."""
State = tuple[torch.Tensor, torch.Tensor]


class Classifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(1000, 128)
        self.lstm = nn.LSTM(128, 256, batch_first=True)
        self.head = nn.Linear(256, 2)

    def forward(self, tokens_BT: torch.Tensor) -> torch.Tensor:
        y_BTH, _ = self.lstm(self.embedding(tokens_BT))
        return torch.softmax(self.head(y_BTH[:, -1]), dim=1)

    def classify(self, rows: list[torch.Tensor]) -> torch.Tensor:
        """Rows of any lengths. Packed, padding is not computed: more than twice as fast as padded at lognormal lengths."""
        lengths = [len(row) for row in rows]
        if min(lengths) == max(lengths):
            return self(torch.stack(rows))
        x_BTD = self.embedding(pad_sequence(rows, batch_first=True))
        packed = pack_padded_sequence(x_BTD, torch.tensor(lengths), batch_first=True, enforce_sorted=False)
        _, (h_1BH, _) = self.lstm(packed)
        return torch.softmax(self.head(h_1BH[0]), dim=1)


class Language(nn.Module):
    """Bytes in, the next byte out. Steps go through an LSTMCell, which is up to four times faster than an LSTM over one step."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(256, 128)
        self.lstm = nn.LSTM(128, 256, batch_first=True)
        self.head = nn.Linear(256, 256)
        self.cell = nn.LSTMCell(128, 256)

    def load_state_dict(self, weights: dict[str, torch.Tensor]) -> None:
        own = {f"cell.{n.removeprefix('lstm.')[:-3]}": v for n, v in weights.items() if n.startswith("lstm.")}
        super().load_state_dict({**weights, **own})

    def start(self, prompts: list[str]) -> tuple[torch.Tensor, State]:
        """Logits [B, 256] after prompts of any lengths, and the states."""
        rows = [torch.tensor([START, *prompt.encode()]) for prompt in prompts]
        lengths = [len(row) for row in rows]
        x_BTD = self.embedding(pad_sequence(rows, batch_first=True))
        if min(lengths) < max(lengths):
            x_BTD = pack_padded_sequence(x_BTD, torch.tensor(lengths), batch_first=True, enforce_sorted=False)
        _, (h_1BH, c_1BH) = self.lstm(x_BTD)
        return self.head(h_1BH[0]), (h_1BH[0], c_1BH[0])

    def step(self, tokens_B: torch.Tensor, state: State) -> tuple[torch.Tensor, State]:
        h_BH, c_BH = self.cell(self.embedding(tokens_B), state)
        return self.head(h_BH), (h_BH, c_BH)


def sample(logits_BK: torch.Tensor) -> torch.Tensor:
    """Tokens [B] at temperature 1."""
    return torch.multinomial(torch.softmax(logits_BK, 1), 1)[:, 0]


def load_classifier() -> Classifier:
    torch.set_num_threads(1)
    model = Classifier().eval()
    model.load_state_dict(load_file(Path(os.environ["BENCH_WEIGHTS"]) / "classifier.safetensors"))
    with torch.inference_mode():
        for batch in BATCHES:
            model(torch.zeros(batch, 32, dtype=torch.int64))
    return model


def load_language() -> Language:
    torch.set_num_threads(1)
    model = Language().eval()
    model.load_state_dict(load_file(Path(os.environ["BENCH_WEIGHTS"]) / "language.safetensors"))
    with torch.inference_mode():
        for batch in BATCHES:
            logits_BK, state = model.start(["a warm-up"] * batch)
            model.step(sample(logits_BK), state)
    return model
