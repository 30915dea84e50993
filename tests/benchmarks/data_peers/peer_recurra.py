"""Recurra's pipeline."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator

import numpy as np
import torch
from reading import Reader, Request, run

from recurra.data.dataset import Dataset
from recurra.data.pipeline import Pipeline
from recurra.data.plan import PlanOptions
from recurra.data.schema import Column, SequenceSchema
from recurra.data.write import DatasetWriter

WINDOW = 128
"""Steps of a row in lanes and packed mode."""


def write(source: str, folder: str) -> None:
    arrays = np.load(source)
    with DatasetWriter(f"file://{folder}", SequenceSchema((Column("tokens", "uint16"),)), {}) as writer:
        for row in np.split(arrays["tokens"], arrays["cuts"]):
            writer.write({"tokens": row})


def open_reader(request: Request) -> Reader:
    os.environ.update(AWS_ENDPOINT_URL_S3=request.endpoint, AWS_ACCESS_KEY_ID=request.access_key)
    os.environ.update(AWS_SECRET_ACCESS_KEY=request.secret_key)
    pipeline = Pipeline(
        Dataset.open(request.location),
        PlanOptions(
            request.mode,
            batch_sequences=request.batch * request.world,
            window=None if request.mode == "buckets" else WINDOW,
        ),
        rank=request.rank,
        world_size=request.world,
        epochs=1,
    )
    if request.state is not None:
        pipeline.restore(request.state)
    return Reader(batches(pipeline), lambda: pipeline.position)


def batches(pipeline: Pipeline) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    for batch in pipeline:
        yield torch.from_numpy(batch.columns["tokens"].astype(np.int64)), torch.from_numpy(batch.lengths)


if __name__ == "__main__":
    if sys.argv[1] == "write":
        write(*sys.argv[2:])
    else:
        run(open_reader)
