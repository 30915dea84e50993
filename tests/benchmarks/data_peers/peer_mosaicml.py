"""mosaicml-streaming: MDS shards of its default size, `py1e` shuffling, `batch_size` told to the dataset."""

from __future__ import annotations

import os
import sys

import numpy as np
import torch
from reading import Reader, Request, join_ranks, pad, run

for name in (
    "nms",
    "qnms",
):  # the package imports torchvision, whose own operators are missing beside a CPU build of torch
    torch.library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

from streaming import MDSWriter, StreamingDataLoader, StreamingDataset


def write(source: str, folder: str) -> None:
    arrays = np.load(source)
    with MDSWriter(out=folder, columns={"tokens": "ndarray:uint16"}) as writer:
        for row in np.split(arrays["tokens"], arrays["cuts"]):
            writer.write({"tokens": row})


def collate(samples: list[dict[str, np.ndarray]]) -> object:
    return pad([sample["tokens"] for sample in samples])


def open_reader(request: Request) -> Reader:
    os.environ.update(S3_ENDPOINT_URL=request.endpoint, AWS_ACCESS_KEY_ID=request.access_key)
    os.environ.update(AWS_SECRET_ACCESS_KEY=request.secret_key, AWS_DEFAULT_REGION="us-east-1")
    join_ranks(request)
    dataset = StreamingDataset(
        remote=request.location, local=f"{request.folder}/cache", shuffle=True, batch_size=request.batch
    )
    loader = StreamingDataLoader(
        dataset, batch_size=request.batch, num_workers=request.workers, collate_fn=collate, drop_last=False
    )
    if request.state is not None:
        loader.load_state_dict(request.state)
    return Reader(iter(loader), loader.state_dict)


if __name__ == "__main__":
    if sys.argv[1] == "write":
        write(*sys.argv[2:])
    else:
        run(open_reader)
