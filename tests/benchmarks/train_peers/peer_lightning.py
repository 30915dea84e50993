"""Lightning's Trainer over torch's DataLoader, the rows in memory, shuffled and padded by one loading process."""

from __future__ import annotations

from typing import Any

import lightning
import numpy as np
import pyarrow.parquet
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from training import CLIP_NORM, LEARNING_RATE, LanguageModel, Meter, answer, loss_of, pad, read_request


class Module(lightning.LightningModule):
    def __init__(self, vocabulary: int, width: int, meter: Meter) -> None:
        super().__init__()
        self.model = LanguageModel(vocabulary, width)
        self.meter = meter

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        loss = loss_of(self.model, *batch)
        self.log("loss", loss)
        return loss

    def on_train_batch_end(self, outputs: Any, batch: tuple[Tensor, Tensor], index: int) -> None:
        self.meter.stepped(int(batch[1].sum()))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=LEARNING_RATE, weight_decay=0.0, fused=True)


def main() -> None:
    request = read_request()
    column = pyarrow.parquet.read_table(request.parquet, filesystem=request.store)["tokens"].combine_chunks()
    rows = np.split(column.values.to_numpy(), column.offsets.to_numpy()[1:-1])
    loader = DataLoader(
        rows, request.batch, shuffle=True, collate_fn=pad, num_workers=1, persistent_workers=True, prefetch_factor=4
    )
    meter = Meter(request.warm)
    trainer = lightning.Trainer(
        accelerator="cpu",
        devices=1,
        max_steps=request.steps,
        gradient_clip_val=CLIP_NORM,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=request.folder,
    )
    trainer.fit(Module(request.vocabulary, request.width, meter), loader)
    answer(meter.rate)


if __name__ == "__main__":
    main()
