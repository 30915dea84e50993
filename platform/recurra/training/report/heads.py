"""Pictures of what the heads of a Neural Turing Machine did: time to the right, memory rows or channels downwards."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from itertools import zip_longest
from typing import Any

import numpy as np

from recurra.training.report.axis import Axis, Numbers, number_text

WIDTH, LEFT, RIGHT, BOTTOM = 600, 44, 8, 22
_SEEN = 0.02
"""Weights below are not drawn: of 128 rows that nobody attends to, each has less."""


def heads_html(found: dict[str, Any]) -> str:
    """Cells of two columns, as in the paper: what went in and was written; what was read and came out."""
    writes = [head for head in found["heads"] if head["kind"] == "write"]
    reads = [head for head in found["heads"] if head["kind"] == "read"]
    rows = _rows_in_use([np.array(head["weights"], np.float64) for head in found["heads"]])
    pictures = [(_channels("vectors added to the memory", found["adds"]), _channels("vectors read", found["reads"]))]
    ends = (("inputs", "inputs"), ("outputs", "outputs, where they are judged"))
    seen = [_channels(name, found[key]) if key in found else "" for key, name in ends]
    if any(seen):
        pictures.insert(0, (seen[0], seen[1]))
    for write, read in zip_longest(writes, reads):
        pictures.append((_weighting("write head", write, writes, rows), _weighting("read head", read, reads, rows)))
    return "".join(f"<div>{picture}</div>" for pair in pictures for picture in pair)


def _rows_in_use(weightings: Sequence[Numbers]) -> list[int]:
    """Memory rows in order, those cut away that no head attends to. The memory is a ring, so they may wrap around."""
    rows = weightings[0].shape[1]
    used = np.flatnonzero(np.max([weights.max(0) for weights in weightings], 0) >= _SEEN)
    if not len(used):
        return list(range(rows))
    gaps = np.diff(np.append(used, used[0] + rows))
    first = int(used[(int(gaps.argmax()) + 1) % len(used)])
    count = rows - int(gaps.max()) + 1
    start, count = (0, rows) if count > 0.8 * rows else (first - 1, min(rows, count + 2))
    return [(start + place) % rows for place in range(count)]


def _weighting(name: str, head: dict[str, Any] | None, heads: Sequence[Any], rows: Sequence[int]) -> str:
    """Dark = attended to; the labels are numbers of memory rows."""
    if head is None:
        return ""
    which = f" {head['number']}" if len(heads) > 1 else ""
    cells = np.array(head["weights"], np.float64).T[rows]
    seen = np.where(cells >= _SEEN, cells, 0.0)
    return _picture(f"{name}{which}, by memory row", seen, [str(row) for row in rows])


def _channels(name: str, values: Sequence[Sequence[float]]) -> str:
    """Blue = positive, orange = negative."""
    cells = np.array(values, np.float64).T
    return _picture(name, cells, [str(channel) for channel in range(len(cells))])


def _picture(name: str, cells_YT: Numbers, labels: Sequence[str]) -> str:
    count, steps = cells_YT.shape
    size = (WIDTH - LEFT - RIGHT) / steps
    tall = min(max(size, 3.0), 12.0, max(3.0, 330 / count))
    strongest = max(float(np.abs(cells_YT).max()), 1e-9)
    parts = [f'<rect class="field" x="{LEFT}" y="0" width="{size * steps:.1f}" height="{tall * count:.1f}"/>']
    for place, step in zip(*np.nonzero(np.abs(cells_YT) > 0.01 * strongest), strict=True):
        value = cells_YT[place, step] / strongest
        parts.append(
            f'<rect class="{"cell" if value > 0 else "cell less"}" x="{LEFT + step * size:.1f}" y="{place * tall:.1f}" '
            f'width="{size - 0.4:.1f}" height="{tall - 0.4:.1f}" fill-opacity="{abs(value):.2f}"/>'
        )
    apart = max(1, math.ceil(count / max(1, min(8, count * tall // 12))))
    for place in range(0, count, apart):
        y = (place + 0.5) * tall + 4
        parts.append(f'<text class="tick end" x="{LEFT - 6}" y="{y:.1f}">{escape(labels[place])}</text>')
    axis = Axis(0, steps, LEFT, LEFT + size * steps)
    base = tall * count + 15
    for step in axis.ticks()[:-1]:
        if step == int(step):
            parts.append(f'<text class="tick start" x="{axis.at(step):.1f}" y="{base:.1f}">{number_text(step)}</text>')
    parts.append(f'<text class="tick end" x="{WIDTH - RIGHT}" y="{base:.1f}">step</text>')
    height = tall * count + BOTTOM
    top = f'<svg viewBox="0 -4 {WIDTH} {height + 4:.1f}" role="img" aria-label="{escape(name)}">'
    return f"<h3>{escape(name)}</h3>{top}{''.join(parts)}</svg>"
