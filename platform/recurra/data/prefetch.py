"""Runs ahead of the consumer: fetches the blocks of coming chunks within a byte budget and assembles the next one."""

from __future__ import annotations

import contextlib
import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import CancelledError, Future
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import dataclass, field
from functools import partial
from queue import Empty, Full, Queue
from threading import Event, Thread

import numpy as np
from numpy.typing import NDArray

from recurra.data.columns import Rows
from recurra.data.reader import BlockReader
from recurra.data.stream import Assembled, Chunk, Stream
from recurra.errors import DataError

_POLL_S = 0.2
_MIN_AHEAD, _MAX_AHEAD = 2, 32
"""Chunks that are planned ahead while the budget lasts: so many into the next epoch, so many in this one."""


@dataclass(eq=False)
class _Held:
    """A block that some coming chunk needs."""

    future: Future[Rows]
    bytes: int
    users: int = 0


@dataclass(eq=False)
class _Planned:
    chunk: Chunk
    held: dict[int, _Held] = field(default_factory=dict)


class Prefetcher:
    """One background thread over the reader's threads. `next` gives chunks in order, and raises what went wrong there."""

    def __init__(self, reader: BlockReader, stream: Stream, budget_bytes: int) -> None:
        self._reader = reader
        self._block_bytes = reader.source.manifest.blocks["bytes"]
        self._stream = stream
        self._budget = budget_bytes
        self._ready: Queue[Assembled | BaseException | None] = Queue(maxsize=1)
        self._stopping = Event()
        self._held: dict[tuple[int, int], _Held] = {}
        self._held_bytes = 0
        self._delivered = False
        self._uses: tuple[int, NDArray[np.float64]] | None = None
        self._pid = os.getpid()

    def start(self, chunks: Iterator[Chunk], epoch: int) -> None:
        """Begin with the first of these chunks, which is in that epoch."""
        Thread(target=self._run, args=(chunks, epoch), name="recurra-prefetch", daemon=True).start()

    def next(self) -> Assembled | None:
        """The next chunk once it is there; None behind the last.

        Raises:
            DataError: `stop` was called meanwhile.
            Exception: Whatever fetching or assembling raised.
        """
        item = self._ready.get()
        if isinstance(item, BaseException):
            raise item
        return item

    def stop(self) -> None:
        """End the threads; requests that are under way finish by themselves and are thrown away."""
        if self._pid != os.getpid():  # a fork took the locks along, but not the threads that would release them
            return
        self._stopping.set()
        self._reader.close()
        with contextlib.suppress(Empty):
            self._ready.get_nowait()
        with contextlib.suppress(Full):  # for a consumer that waits in another thread
            self._ready.put_nowait(DataError("The pipeline was closed while a batch was awaited."))

    def _run(self, chunks: Iterator[Chunk], epoch: int) -> None:
        with contextlib.suppress(_StoppedError):
            try:
                self._reader.source.expect(partial(self._use, epoch))
                for assembled in self._assembled(chunks):
                    self._put(assembled)
                    self._delivered = True
                self._put(None)
            except _StoppedError:
                raise
            except Exception as exc:  # noqa: BLE001 - the consumer raises it
                self._put(exc)

    def _assembled(self, chunks: Iterator[Chunk]) -> Iterator[Assembled]:
        ahead: deque[_Planned] = deque()
        more = True
        while more or ahead:
            while more and self._wants_more(ahead):
                chunk = next(chunks, None)
                if chunk is None:
                    more = False
                else:
                    ahead.append(self._request(chunk))
            if ahead:
                yield self._assemble(ahead.popleft())

    def _wants_more(self, ahead: deque[_Planned]) -> bool:
        if not ahead:
            return True
        if not self._delivered:  # nothing competes with the first batch, which somebody waits for
            return False
        if len(ahead) < _MIN_AHEAD and self._held_bytes < self._budget:
            return True
        same_epoch = ahead[0].chunk.epoch == ahead[-1].chunk.epoch
        return same_epoch and len(ahead) < _MAX_AHEAD and self._held_bytes < self._budget

    def _request(self, chunk: Chunk) -> _Planned:
        planned = _Planned(chunk)
        missing = {}
        for place in chunk.places.tolist():
            held = self._held.get((chunk.epoch, place))
            if held is None:
                missing[int(chunk.order.blocks[place])] = place
            else:
                planned.held[place] = held
        prepare = partial(self._prepare, chunk, missing)
        for block, future in self._reader.submit(list(missing), prepare, partial(self._use, chunk.epoch + 1)).items():
            held = _Held(future, int(self._block_bytes[block]))
            self._held[chunk.epoch, missing[block]] = planned.held[missing[block]] = held
            self._held_bytes += held.bytes
        for held in planned.held.values():
            held.users += 1
        return planned

    def _use(self, epoch: int, block: int) -> float:
        """When a block is needed in an epoch; asked by the cache, from the reader's threads."""
        known = self._uses
        if known is None or known[0] != epoch:
            known = self._uses = epoch, self._stream.uses(epoch)
        return float(known[1][block])

    def _prepare(self, chunk: Chunk, places: dict[int, int], block: int, rows: Rows) -> Rows:
        return self._stream.prepare(chunk, places[block], rows)

    def _assemble(self, planned: _Planned) -> Assembled:
        blocks = planned.chunk.order.blocks
        rows = {place: self._wait(int(blocks[place]), held.future) for place, held in planned.held.items()}
        assembled = planned.chunk.assemble(rows)
        for place, held in planned.held.items():
            held.users -= 1
            if not held.users:
                del self._held[planned.chunk.epoch, place]
                self._held_bytes -= held.bytes
        return assembled

    def _wait(self, block: int, future: Future[Rows]) -> Rows:
        while not self._stopping.is_set():
            try:
                return future.result(timeout=_POLL_S)
            except CancelledError:
                break
            except FutureTimeout:
                if future.done():
                    raise
                self._reader.hedge(block)
        raise _StoppedError

    def _put(self, item: Assembled | BaseException | None) -> None:
        while not self._stopping.is_set():
            try:
                return self._ready.put(item, timeout=_POLL_S)
            except Full:
                continue
        raise _StoppedError


class _StoppedError(Exception):
    """The consumer has gone."""
