"""Threads that read blocks ahead, and ask again for what takes too long."""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from queue import Empty, SimpleQueue
from threading import Lock, Thread

from recurra.data.blocks import BlockSource, NextUse, never
from recurra.data.columns import Rows

THREADS = 8
_HEDGE_S = 1.0
_FACTOR = 3.0
"""A block is asked for again after this many times the slowest of the last requests, and never before `_HEDGE_S`."""
_UNKNOWN_S = 2.0
"""Taken for the slowest while no request has ended yet."""
_TIMES = 32
_MAX_ATTEMPTS = 4

Then = Callable[[int, Rows], Rows]


class BlockReader:
    """Reads blocks in the background. Threads start with the first request and end with `close`."""

    def __init__(self, source: BlockSource, threads: int = THREADS) -> None:
        self.source = source
        self._count = threads
        self._threads: list[Thread] = []
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._lock = Lock()
        self._closed = False
        self._under_way: dict[int, _Job] = {}
        self._times: deque[float] = deque(maxlen=_TIMES)
        self.hedged = 0
        """Requests that were made again."""

    def submit(
        self, blocks: Sequence[int], then: Then | None = None, next_use: NextUse = never
    ) -> dict[int, Future[Rows]]:
        """Start fetching; `then` is applied to each block in the reader's thread."""
        futures: dict[int, Future[Rows]] = {block: Future() for block in blocks}
        jobs = [
            _Job(self, {block: futures[block] for block in run}, then, next_use)
            for run in self.source.requests(sorted(futures))
        ]
        with self._lock:
            for job in jobs:
                if self._closed:
                    job.cancel()
                else:
                    self._start()
                    self._jobs.put(job)
        return futures

    def hedge(self, block: int) -> None:
        """Ask again for a block that has been under way much longer than others took; the first answer counts.

        The thread that asks again takes the place of the one that is stuck, which ends with its request.
        """
        with self._lock:
            job = self._under_way.get(block)
            patience_s = max(_HEDGE_S, _FACTOR * max(self._times, default=_UNKNOWN_S))
            late = job is not None and time.monotonic() - job.started_s >= patience_s
            if job is None or not late or job.made == _MAX_ATTEMPTS or job.futures[block].done():
                return
            job.started_s = time.monotonic()
            job.made += 1
            job.attempts += 1
            self.hedged += 1
            if not self._closed:
                Thread(target=_work, args=(self, self._jobs, job), name="recurra-read-again", daemon=True).start()

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

    def begin(self, job: _Job) -> None:
        """Note that a job is under way; its thread says so."""
        with self._lock:
            job.started_s, job.attempts, job.made = time.monotonic(), 1, 1
            self._under_way.update(dict.fromkeys(job.futures, job))

    def end(self, job: _Job) -> bool:
        """Note that one attempt at a job has ended; False while another one is still at it."""
        with self._lock:
            job.attempts -= 1
            if job.made == 1:
                self._times.append(time.monotonic() - job.started_s)
            for block in job.futures:
                if self._under_way.get(block) is job:
                    del self._under_way[block]
            return job.attempts == 0

    def _start(self) -> None:
        if self._threads:
            return
        self._threads = [
            Thread(target=_work, args=(self, self._jobs), name=f"recurra-read-{number}", daemon=True)
            for number in range(self._count)
        ]
        for thread in self._threads:
            thread.start()


class _Job:
    """One request and the futures that it fulfils. Two attempts may be at it; what comes first counts."""

    def __init__(
        self, reader: BlockReader, futures: dict[int, Future[Rows]], then: Then | None, next_use: NextUse
    ) -> None:
        self._reader = reader
        self.futures = futures
        self._then = then
        self._next_use = next_use
        self.started_s = 0.0
        self.attempts = 0
        """Under way now."""
        self.made = 0
        """Begun so far."""

    def run(self) -> None:
        """One attempt; an error counts only if no other attempt is left to succeed."""
        try:
            found = self._reader.source.read(list(self.futures), self._next_use)
            for (block, future), rows in zip(self.futures.items(), found, strict=True):
                done = rows if self._then is None or future.done() else self._then(block, rows)
                with contextlib.suppress(InvalidStateError):
                    future.set_result(done)
        except Exception as exc:  # noqa: BLE001 - the consumer raises it
            if self._reader.end(self):
                for future in self.futures.values():
                    with contextlib.suppress(InvalidStateError):
                        future.set_exception(exc)
        else:
            self._reader.end(self)

    def cancel(self) -> None:
        for future in self.futures.values():
            future.cancel()


def _work(reader: BlockReader, jobs: SimpleQueue[_Job | None], again: _Job | None = None) -> None:
    """Run jobs until the reader closes; `again` is one that another thread is stuck with."""
    while (job := again or jobs.get()) is not None:
        if again is None:
            reader.begin(job)
        again, attempt = None, job.made
        job.run()
        if job.made > attempt:  # another thread has taken over
            return
