"""Says what a long command is doing: stages with their times, and a line whenever there was none for a while."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

SILENCE_S = 9.0


class Narrator:
    """Lines with the seconds since the start; safe from several threads.

    Args:
        say: Takes a line.
        clock: Seconds from any origin.
    """

    def __init__(self, say: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._say = say
        self._clock = clock
        self._lock = threading.Lock()
        self._start_s = self._last_s = clock()
        self.stages: list[tuple[str, float]] = []
        """Name and seconds of each stage that ended."""

    def __call__(self, text: str) -> None:
        with self._lock:
            self._last_s = self._clock()
            for line in text.splitlines() or [""]:
                self._say(f"{self._last_s - self._start_s:6.1f} s  {line}")

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Something that takes a while, as `short name: what is done`; its time is kept also when it fails."""
        begun_s = self._clock()
        self(f"== {name}")
        ended = threading.Event()
        short = name.partition(":")[0]
        ticker = threading.Thread(target=self._tick, args=(short, begun_s, ended), name="narrator", daemon=True)
        ticker.start()
        try:
            yield
        finally:
            ended.set()
            ticker.join()
            self.stages.append((name, self._clock() - begun_s))

    def tick(self, name: str, begun_s: float) -> None:
        """Say that `name` still goes on, if nothing was said for `SILENCE_S`."""
        with self._lock:
            silent = self._clock() - self._last_s >= SILENCE_S
        if silent:
            self(f"   ... {name}, {self._clock() - begun_s:.0f} s so far")

    def _tick(self, name: str, begun_s: float, ended: threading.Event) -> None:
        while not ended.wait(0.5):
            self.tick(name, begun_s)
