"""A dataset as an endless, exact stream of batches: the same at any number of ranks, restored at any step."""

from __future__ import annotations

import os
import time
import weakref
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Self

from recurra.data.batch import Batch
from recurra.data.blocks import BlockSource
from recurra.data.buckets import BucketPlan
from recurra.data.cache import BlockCache
from recurra.data.dataset import Dataset
from recurra.data.lanes import LanePlan
from recurra.data.padded import BucketStream
from recurra.data.plan import PlanOptions, Position, Share
from recurra.data.prefetch import Prefetcher
from recurra.data.reader import BlockReader
from recurra.data.stream import Assembled, Chunk, Stream
from recurra.data.windows import LaneStream
from recurra.errors import ConfigError

PREFETCH_BYTES = 128 << 20


class Pipeline:
    """One rank's batches of a dataset.

    Iterating goes on behind the batch that was handed out last, so that a loop may be left and entered again; once
    all epochs are over, the next loop begins with epoch 0. Not to be iterated by two threads.

    Args:
        dataset: All ranks must have the same version (see `Dataset.version`).
        options: The plan.
        rank: Index of this process among `world_size`.
        epochs: Where to end; None = never.
        prefetch_bytes: Blocks held for coming batches, about; what the next batch needs is always fetched. A dataset of
            half that size is fetched once and kept.
        cache: A directory on a local disk for blocks; pipelines may share one.
    """

    def __init__(
        self,
        dataset: Dataset,
        options: PlanOptions,
        *,
        rank: int = 0,
        world_size: int = 1,
        epochs: int | None = None,
        prefetch_bytes: int = PREFETCH_BYTES,
        cache: BlockCache | None = None,
    ) -> None:
        if epochs is not None and epochs < 1:
            raise ConfigError(f"epochs is {epochs}. Set it to 1 or more, or leave it out to go on for ever.")
        self._dataset = dataset
        self._options = options
        self._epochs = epochs
        self._prefetch_bytes = prefetch_bytes
        self._cache = cache
        self._stream = build_stream(dataset, options, Share(rank, world_size))
        self._base = Position().to_json(dataset.manifest, options)
        self._position = Position()
        self._prefetcher: Prefetcher | None = None
        self._ending: weakref.finalize[[], Pipeline] | None = None
        self._pid = os.getpid()
        self._current: Assembled | None = None
        self._index = 0
        self.wait_s = 0.0
        """Seconds that the consumer waited for data, over all batches."""
        self.padding = (0, 0)
        """Time steps handed out on this rank so far: (real, with padding)."""

    def __iter__(self) -> Iterator[Batch]:
        while (batch := self._next()) is not None:
            yield batch
        self._halt()
        self._position = Position()

    def batches_in_epoch(self, epoch: int = 0) -> int:
        """Batches of that epoch, the same for all ranks; bucket batches by tokens may differ between epochs."""
        return self._stream.batches(epoch)

    @property
    def position(self) -> dict[str, int | str]:
        """`Batch.position` of the batch that was handed out last."""
        return self._to_json(self._position)

    def restore(self, position: Mapping[str, int | str]) -> None:
        """Go on behind the batch that has this position, whichever number of ranks it was saved under.

        Raises:
            ConfigError: The dataset, the seed or an option is another one; says which, and both values.
        """
        self._halt()
        self._position = Position.from_json(position, self._dataset.manifest, self._options)

    def close(self) -> None:
        """Stop the threads; iterating again would start them anew."""
        self._halt()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _next(self) -> Batch | None:
        if self._pid != os.getpid():  # threads do not survive a fork: begin anew where the parent stood
            self._halt()
            self._pid = os.getpid()
        while self._current is None or self._index == self._current.batches:
            self._current, self._index = self._wait(), 0
            if self._current is None:
                return None
        index, self._index = self._index, self._index + 1
        self._position = self._current.behind(index)
        batch = self._current.batch(index, self._to_json(self._position))
        real, padded = self.padding
        self.padding = (real + self._current.real[index], padded + batch.reset.size)
        return batch

    def _wait(self) -> Assembled | None:
        started = time.perf_counter()
        try:
            if self._prefetcher is None:
                self._begin()
            assert self._prefetcher is not None
            return self._prefetcher.next()
        except BaseException:
            self._halt()
            raise
        finally:
            self.wait_s += time.perf_counter() - started

    def _begin(self) -> None:
        dataset, keep_bytes = self._dataset, self._prefetch_bytes // 2
        source = BlockSource(dataset.url, dataset.manifest, keep_bytes=keep_bytes, cache=self._cache)
        prefetcher = Prefetcher(BlockReader(source), self._stream, self._prefetch_bytes)
        self._ending = weakref.finalize(self, prefetcher.stop)
        prefetcher.start(_chunks(self._stream, self._position, self._epochs), self._position.epoch)
        self._prefetcher = prefetcher

    def _halt(self) -> None:
        if self._ending is not None and self._pid == os.getpid():
            self._ending()
        self._prefetcher, self._ending, self._current, self._index = None, None, None, 0

    def _to_json(self, position: Position) -> dict[str, int | str]:
        return {
            **self._base,
            "epoch": position.epoch,
            "step": position.step,
            "part": position.part,
            "at": position.at,
        }


def build_stream(dataset: Dataset, options: PlanOptions, share: Share) -> Stream:
    """The stream of a mode."""
    manifest = dataset.manifest
    if options.mode == "buckets":
        return BucketStream(manifest.schema, BucketPlan(manifest, options, dataset.index), share)
    return LaneStream(manifest, options, LanePlan(manifest, options), share)


def _chunks(stream: Stream, position: Position, epochs: int | None) -> Iterator[Chunk]:
    """From a position to the end of the last epoch."""
    while epochs is None or position.epoch < epochs:
        yield from stream.chunks(position)
        position = Position(position.epoch + 1)
