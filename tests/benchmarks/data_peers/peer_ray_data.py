"""Ray Data: Parquet, files in random order, batches collated in the consumer; `streaming_split` for several readers.

The first reader's process holds the cluster and reads for all ranks; connecting is not measured.
"""

from __future__ import annotations

import json
import os
import sys
import time
from urllib.parse import urlsplit

import numpy as np
import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet
import ray
from reading import Counts, Reader, Request, answer, count, cpu_seconds, memory_bytes, pad

SHARD_ROWS = 65536


def write(source: str, folder: str) -> None:
    arrays = np.load(source)
    tokens, offsets = arrays["tokens"], np.concatenate([[0], arrays["cuts"], [len(arrays["tokens"])]])
    for number, first in enumerate(range(0, len(offsets) - 1, SHARD_ROWS)):
        cut = offsets[first : first + SHARD_ROWS + 1]
        rows = pa.ListArray.from_arrays(pa.array(cut - cut[0], pa.int32()), tokens[cut[0] : cut[-1]])
        pyarrow.parquet.write_table(
            pa.table({"tokens": rows}), f"{folder}/{number:05d}.parquet", compression="none", use_dictionary=False
        )


def dataset_of(request: Request) -> ray.data.Dataset:
    url = urlsplit(request.endpoint)
    store = pyarrow.fs.S3FileSystem(
        access_key=request.access_key,
        secret_key=request.secret_key,
        endpoint_override=url.netloc,
        scheme=url.scheme,
        region="us-east-1",
    )
    return ray.data.read_parquet(request.location.removeprefix("s3://"), filesystem=store, shuffle="files")


def batches_of(source: object, request: Request) -> Reader:
    return Reader(
        iter(
            source.iter_torch_batches(
                batch_size=request.batch,
                prefetch_batches=8,
                local_shuffle_buffer_size=None,
                collate_fn=lambda batch: pad(batch["tokens"]),
            )
        )
    )


@ray.remote(num_cpus=0)
class Rank:
    def read(self, split: object, request: Request) -> Counts:
        return count(lambda asked: batches_of(split, asked), request)


def main() -> None:
    request = Request(**json.load(sys.stdin))
    os.sched_setaffinity(0, request.cpus)
    ray.init(num_cpus=max(2, request.world), include_dashboard=False, log_to_driver=False, configure_logging=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    if request.world == 1:
        answer(count(lambda asked: batches_of(dataset_of(asked), asked), request))
    before = cpu_seconds()
    begin = time.perf_counter()
    splits = dataset_of(request).streaming_split(request.world, equal=False)
    ranks = [Rank.remote() for _ in splits]
    found = ray.get([rank.read.remote(split, request) for rank, split in zip(ranks, splits, strict=True)])
    total = Counts(elapsed_s=time.perf_counter() - begin, cpu_s=cpu_seconds() - before, peak_bytes=memory_bytes())
    for counts in found:
        total.first_batch_s = max(total.first_batch_s, counts.first_batch_s)
        total.elapsed_s = max(counts.elapsed_s for counts in found)
        for name in ("tokens", "first_tokens", "padded", "batches", "numbers"):
            setattr(total, name, getattr(total, name) + getattr(counts, name))
    answer(total)


if __name__ == "__main__":
    if sys.argv[1] == "write":
        write(*sys.argv[2:])
    else:
        main()
