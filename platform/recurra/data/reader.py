"""Blocks out of the store: one request for neighbours, a checksum for each, decoded without copying."""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from queue import Empty, SimpleQueue
from threading import Lock, Thread

import numpy as np

from recurra.data.columns import Rows, arrow_schema, decode_block
from recurra.data.manifest import Manifest, gone
from recurra.data.order import running
from recurra.errors import IntegrityError, NotFoundError
from recurra.storage.url import open_store

REQUEST_BYTES = 8 << 20
"""Neighbouring blocks are fetched by one request up to this size."""
THREADS = 8


class BlockReader:
    """Reads blocks of one dataset in the background. Threads start with the first request and end with `close`.

    Args:
        url: The dataset's address.
        manifest: Its manifest.
        threads: Requests at once.
        keep_bytes: A dataset of up to this size is fetched once and then kept in memory.
    """

    def __init__(self, url: str, manifest: Manifest, *, threads: int = THREADS, keep_bytes: int = 0) -> None:
        self._url = url
        self._manifest = manifest
        self._arrow = arrow_schema(manifest.schema)
        self._shard_of = np.repeat(np.arange(len(manifest.shards)), [len(shard.blocks) for shard in manifest.shards])
        self._first_block = running(np.array([len(shard.blocks) for shard in manifest.shards], np.int64))
        self._kept: dict[int, Rows] | None = {} if int(manifest.blocks["bytes"].sum()) <= keep_bytes else None
        self._count = threads
        self._threads: list[Thread] = []
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._lock = Lock()
        self._closed = False

    def submit(self, blocks: Sequence[int], then: Callable[[int, Rows], Rows] | None = None) -> dict[int, Future[Rows]]:
        """Start fetching; `then` is applied to each block in the reader's thread."""
        futures: dict[int, Future[Rows]] = {block: Future() for block in blocks}
        jobs = [
            _Job(self, run, {block: futures[block] for block in run}, then) for run in self._requests(sorted(futures))
        ]
        with self._lock:
            for job in jobs:
                if self._closed:
                    job.cancel()
                else:
                    self._start()
                    self._jobs.put(job)
        return futures

    def read(self, blocks: Sequence[int]) -> list[Rows]:
        """Fetch neighbours of one shard in this thread.

        Raises:
            IntegrityError: A block's bytes are not those that were written, or its shard is gone.
        """
        if self._kept is not None and all(block in self._kept for block in blocks):
            return [self._kept[block] for block in blocks]
        table = self._manifest.blocks
        shard = self._manifest.shards[self._shard_of[blocks[0]]]
        start = int(table["offset"][blocks[0]])
        size = int(table["offset"][blocks[-1]] + table["bytes"][blocks[-1]]) - start
        try:
            data = memoryview(open_store(self._url).read(shard.key, start, size))
        except NotFoundError as exc:
            raise gone(self._url, shard.key) from exc
        found = [self._decode(block, data, start) for block in blocks]
        if self._kept is not None:
            self._kept.update(zip(blocks, found, strict=True))
        return found

    def close(self) -> None:
        """End the threads once they are done with what they are at; what waits, and what comes later, is cancelled."""
        with self._lock:
            self._closed = True
            with contextlib.suppress(Empty):
                while True:
                    job = self._jobs.get_nowait()
                    if job is not None:
                        job.cancel()
            for _ in self._threads:
                self._jobs.put(None)
            self._threads = []

    def check(self, block: int, data: memoryview, start: int) -> memoryview:
        """The block's bytes, out of `data` that begins at byte `start` of its shard.

        Raises:
            IntegrityError: They are not those that were written; names shard and block.
        """
        entry = self._manifest.blocks[block]
        low = int(entry["offset"]) - start
        piece = data[low : low + int(entry["bytes"])]
        if len(piece) != entry["bytes"] or zlib.crc32(piece) != entry["crc32"]:
            number = int(self._shard_of[block])
            raise IntegrityError(
                f"Block {block - int(self._first_block[number])} of {self._url}/{self._manifest.shards[number].key} was "
                "altered: its bytes do not match the CRC32 in the manifest. Restore the shard, or write the dataset again."
            )
        return piece

    def _decode(self, block: int, data: memoryview, start: int) -> Rows:
        return decode_block(self._manifest.schema, self._arrow, self.check(block, data, start))

    def _requests(self, blocks: Sequence[int]) -> list[list[int]]:
        """Neighbours together, up to `REQUEST_BYTES`."""
        table = self._manifest.blocks
        runs: list[list[int]] = []
        size = 0
        for block in blocks:
            new = not runs or block != runs[-1][-1] + 1 or self._shard_of[block] != self._shard_of[runs[-1][-1]]
            if new or size + int(table["bytes"][block]) > REQUEST_BYTES:
                runs.append([])
                size = 0
            runs[-1].append(block)
            size += int(table["bytes"][block])
        return runs

    def _start(self) -> None:
        if self._threads:
            return
        self._threads = [
            Thread(target=_work, args=(self._jobs,), name=f"recurra-read-{number}", daemon=True)
            for number in range(self._count)
        ]
        for thread in self._threads:
            thread.start()


class _Job:
    """One request and the futures that it fulfils."""

    def __init__(
        self,
        reader: BlockReader,
        blocks: list[int],
        futures: dict[int, Future[Rows]],
        then: Callable[[int, Rows], Rows] | None,
    ) -> None:
        self._reader = reader
        self._blocks = blocks
        self._futures = futures
        self._then = then

    def __call__(self) -> None:
        try:
            for block, rows in zip(self._blocks, self._reader.read(self._blocks), strict=True):
                self._futures[block].set_result(rows if self._then is None else self._then(block, rows))
        except Exception as exc:  # noqa: BLE001 - the consumer raises it
            for future in self._futures.values():
                if not future.done():
                    future.set_exception(exc)

    def cancel(self) -> None:
        for future in self._futures.values():
            future.cancel()


def _work(jobs: SimpleQueue[_Job | None]) -> None:
    while (job := jobs.get()) is not None:
        job()
