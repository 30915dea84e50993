"""litdata: chunks of its default size, shuffling on, nothing dropped."""

from __future__ import annotations

import functools
import sys

import litdata
import numpy as np
from litdata.streaming import downloader
from reading import Reader, Request, join_ranks, pad, run

downloader._OBSTORE_CLIENT_OPTIONS["allow_http"] = True  # its fast S3 client refuses http:// and has no option for it


def example(rows: list[np.ndarray], number: int) -> dict[str, np.ndarray]:
    return {"tokens": rows[number]}


def write(source: str, folder: str) -> None:
    arrays = np.load(source)
    rows = np.split(arrays["tokens"], arrays["cuts"])
    litdata.optimize(
        fn=functools.partial(example, rows),
        inputs=list(range(len(rows))),
        output_dir=folder,
        chunk_bytes="64MB",
        num_workers=1,
        start_method="fork",
    )


def collate(samples: list[dict[str, np.ndarray]]) -> object:
    return pad([sample["tokens"] for sample in samples])


def open_reader(request: Request) -> Reader:
    join_ranks(request)
    dataset = litdata.StreamingDataset(
        request.location,
        cache_dir=f"{request.folder}/cache",
        shuffle=True,
        drop_last=False,
        storage_options={
            "endpoint_url": request.endpoint,
            "aws_access_key_id": request.access_key,
            "aws_secret_access_key": request.secret_key,
            "region_name": "us-east-1",
        },
    )
    loader = litdata.StreamingDataLoader(
        dataset, batch_size=request.batch, num_workers=request.workers, collate_fn=collate
    )
    if request.state is not None:
        loader.load_state_dict(request.state)
    return Reader(iter(loader), loader.state_dict)


if __name__ == "__main__":
    if sys.argv[1] == "write":
        write(*sys.argv[2:])
    else:
        run(open_reader)
