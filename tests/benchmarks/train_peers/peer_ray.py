"""Ray Train with its own ingest: Ray Data reads the Parquet file, one worker trains."""

from __future__ import annotations

from pathlib import Path

import ray
import ray.data
import ray.train
import torch
from ray.train.torch import TorchTrainer
from training import CLIP_NORM, LEARNING_RATE, LanguageModel, Meter, Request, answer, loss_of, pad, read_request


def train(config: dict[str, Request]) -> None:
    request = config["request"]
    torch.set_num_threads(1)
    model = ray.train.torch.prepare_model(LanguageModel(request.vocabulary, request.width))
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.0, fused=True)
    meter = Meter(request.warm)
    rows = ray.train.get_dataset_shard("train")
    for ids, lengths in rows.iter_torch_batches(
        batch_size=request.batch,
        prefetch_batches=4,
        local_shuffle_buffer_size=8 * request.batch,
        collate_fn=lambda batch: pad(batch["tokens"]),
    ):
        optimizer.zero_grad()
        loss = loss_of(model, ids, lengths)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP_NORM)
        optimizer.step()
        loss.item()
        meter.stepped(int(lengths.sum()))
    Path(request.folder, "rate").write_text(str(meter.rate))  # metrics come back with a checkpoint only


def main() -> None:
    request = read_request()
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, configure_logging=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    trainer = TorchTrainer(
        train,
        train_loop_config={"request": request},
        scaling_config=ray.train.ScalingConfig(num_workers=1, use_gpu=False),
        run_config=ray.train.RunConfig(storage_path=request.folder),
        datasets={"train": ray.data.read_parquet(request.parquet, filesystem=request.store)},
    )
    trainer.fit()
    answer(float(Path(request.folder, "rate").read_text()))


if __name__ == "__main__":
    main()
