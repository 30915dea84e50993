"""How commands speak: results on stdout, progress on stderr, JSON where a program reads it."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Iterable, Sequence
from datetime import datetime
from functools import cache
from types import TracebackType
from typing import Any, Self

from rich import box
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.progress import Progress as RichProgress
from rich.table import Table
from rich.text import Text


@cache
def _console() -> Console:
    return Console(highlight=False)


@cache
def _error_console() -> Console:
    return Console(stderr=True, highlight=False)


def say(text: str = "", style: str | None = None) -> None:
    """A line of the result; square brackets in it are text."""
    _print(_console(), Text(text, style=style or ""))


def note(text: str, style: str | None = "dim") -> None:
    """A line about what is going on; on stderr, so that it never mixes with a result."""
    _print(_error_console(), Text(text, style=style or ""))


def fail(text: str) -> None:
    """What went wrong and what to do about it."""
    _print(_error_console(), Text.assemble(("Error: ", "bold red"), text))


def _print(console: Console, text: Text) -> None:
    # In a terminal lines break between words; in a file they stay whole, for grep.
    console.print(text, soft_wrap=not console.is_terminal)


def emit_json(value: Any) -> None:
    """The result for a program: one JSON document."""
    sys.stdout.write(json.dumps(value, indent=2, default=str) + "\n")
    sys.stdout.flush()


def emit_line(text: str) -> None:
    """One line of a result that comes in parts, for a program that reads along."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def show_table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, right: Sequence[str] = ()) -> None:
    """Rows below a header line.

    Args:
        columns: Headings.
        rows: Cells, made text by `str`.
        right: Headings of the columns that hold numbers.
    """
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for name in columns:
        table.add_column(name, justify="right" if name in right else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(str(cell)) for cell in row))
    _console().print(table)


def show_facts(facts: Iterable[tuple[str, object]]) -> None:
    """Names and values, one pair a line."""
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in facts:
        table.add_row(name, Text(str(value)))
    _console().print(table)


def number(value: float) -> str:
    """Four significant digits, with thin groups for large numbers: `81 300`, `1.932`."""
    if not math.isfinite(value):
        return str(value)
    if abs(value) >= 10_000:
        return f"{value:,.0f}".replace(",", " ")
    return f"{value:.4g}"


def count(number: float) -> str:
    """A count in words of three digits: `812`, `81.3 thousand`, `1.35 million`."""
    for unit in ("", " thousand", " million", " billion"):
        if abs(number) < 999.5:
            return f"{number:.0f}" if not unit else f"{number:.3g}{unit}"
        number /= 1000
    return f"{number:,.3g} trillion"


def size(count: float) -> str:
    """Bytes in the largest unit that leaves a number of at least one."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def duration(seconds: float) -> str:
    """`8.2 s`, `3 min 20 s`, `2 h 05 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def moment(seconds: float | None) -> str:
    """A time as `2026-11-22 21:07:34`, in the machine's time zone; a dash for None."""
    return "-" if not seconds else datetime.fromtimestamp(seconds).isoformat(" ", "seconds")


def draw_bar(share: float, width: int = 40) -> str:
    """A horizontal bar for a share in [0, 1]; whatever is not zero is seen."""
    eighths = math.ceil(share * width * 8 - 1e-9)
    return "█" * (eighths // 8) + " ▏▎▍▌▋▊▉"[eighths % 8].strip()


class Bar:
    """Bytes done of bytes in all: a bar in a terminal, elsewhere a line every few seconds; on stderr.

    Args:
        what: What is going on, such as "verifying".
        every_s: Seconds between two lines.
    """

    def __init__(self, what: str, every_s: float = 5.0) -> None:
        columns = (TextColumn(what), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
        self._drawn = RichProgress(*columns, console=_error_console(), disable=not _error_console().is_terminal)
        self._task = self._drawn.add_task(what, total=None)
        self._lines = Progress()
        self._what = what
        self._every_s = every_s
        self._said_s = time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        self._drawn.update(self._task, completed=done, total=total)
        now = time.monotonic()
        if self._drawn.disable and (now - self._said_s >= self._every_s or done == total):
            self._said_s = now
            self._lines(f"{self._what}: {size(done)} of {size(total)}")

    def __enter__(self) -> Self:
        self._drawn.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._drawn.stop()


class Progress:
    """Lines on stderr with the seconds since the command began."""

    def __init__(self) -> None:
        self._start_s = time.monotonic()

    def __call__(self, text: str) -> None:
        note(f"{time.monotonic() - self._start_s:6.1f} s  {text}")
