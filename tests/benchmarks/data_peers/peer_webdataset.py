"""webdataset: tar files of .npy members, shuffled by shard and through its buffer; it has no way to go on in mid-epoch."""

from __future__ import annotations

import sys

import numpy as np
import webdataset
from reading import Reader, Request, join_ranks, pad, run

SHARD_BYTES = 64 << 20


def write(source: str, folder: str) -> None:
    arrays = np.load(source)
    with webdataset.ShardWriter(f"{folder}/%05d.tar", maxsize=SHARD_BYTES, maxcount=10**9, verbose=0) as writer:
        for number, row in enumerate(np.split(arrays["tokens"], arrays["cuts"])):
            writer.write({"__key__": f"{number:09d}", "npy": row})


def open_reader(request: Request) -> Reader:
    join_ranks(request)
    dataset = (
        webdataset.WebDataset(request.files, shardshuffle=100, nodesplitter=webdataset.split_by_node, empty_check=False)
        .shuffle(1000)
        .decode()
        .to_tuple("npy")
        .map_tuple(np.asarray)
        .batched(request.batch, collation_fn=lambda rows: pad([row for (row,) in rows]))
    )
    return Reader(iter(webdataset.WebLoader(dataset, batch_size=None, num_workers=request.workers)))


if __name__ == "__main__":
    if sys.argv[1] == "write":
        write(*sys.argv[2:])
    else:
        run(open_reader)
