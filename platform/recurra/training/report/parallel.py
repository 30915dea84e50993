"""Parallel coordinates: one upright axis a setting, one line a trial. A pure function of values."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise
from typing import Any

import numpy as np

from recurra.training.report.axis import Axis, number_text
from recurra.training.report.plot import WIDE

HEIGHT, TOP, BOTTOM, SIDE = 380, 46, 30, 96
_DECADES = 0.85
"""Positive numbers that span more powers of ten than this have a logarithmic axis."""


@dataclass(frozen=True)
class Strand:
    """One trial."""

    label: str
    """Shown where the pointer rests."""
    values: Sequence[Any]
    """One an axis; None leaves the axis out."""
    merit: float
    """From 0, the worst and palest, to 1, the best, which is drawn on top."""
    dashed: bool = False


def parallel_plot(names: Sequence[str], strands: Sequence[Strand]) -> str:
    """An SVG; a sentence when there is nothing to show.

    Args:
        names: Of the axes.
        strands: In any order.
    """
    if not strands or len(names) < 2:
        return '<p class="empty">No trial has a result yet.</p>'
    axes = [_Upright.of([strand.values[number] for strand in strands]) for number in range(len(names))]
    x = np.linspace(SIDE, WIDE - SIDE, len(names)).tolist()
    parts = [_strand(strand, axes, x) for strand in sorted(strands, key=lambda strand: strand.merit)]
    parts += [_axis(name, axis, at) for name, axis, at in zip(names, axes, x, strict=True)]
    return f'<svg class="parallel" viewBox="0 0 {WIDE} {HEIGHT}" role="img">{"".join(parts)}</svg>'


@dataclass(frozen=True)
class _Upright:
    """Where values stand on an axis: numbers by size, anything else in order, one below the other."""

    numbers: Axis | None
    words: tuple[str, ...]
    labels: tuple[tuple[str, float], ...]
    """Text and height of the ticks."""

    @classmethod
    def of(cls, values: Sequence[Any]) -> _Upright:
        present = [value for value in values if value is not None]
        bottom, top = float(HEIGHT - BOTTOM), float(TOP)
        if present and all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in present):
            numbers = np.array([value for value in present if math.isfinite(value)], np.float64)
            wide = len(numbers) > 0 and numbers.min() > 0 and math.log10(numbers.max() / numbers.min()) > _DECADES
            axis = Axis.around(numbers, bottom, top, log=bool(wide))
            whole = all(isinstance(value, int) for value in present)
            ticks = sorted(set(present)) if whole and len(set(present)) <= 6 else axis.ticks()
            return cls(axis, (), tuple((number_text(tick), axis.at(tick)) for tick in ticks))
        words = tuple(sorted({str(value) for value in present}))
        gap = (bottom - top) / (len(words) + 1)
        return cls(None, words, tuple((word, top + gap * (place + 1)) for place, word in enumerate(words)))

    def at(self, value: Any) -> float | None:
        """Pixels from above; None where it has no place."""
        if value is None or (isinstance(value, float) and not math.isfinite(value)):
            return None
        if self.numbers is not None:
            return self.numbers.at(value)
        return dict(self.labels)[str(value)]


def _strand(strand: Strand, axes: Sequence[_Upright], x: Sequence[float]) -> str:
    points = [
        (at, y) for at, axis, value in zip(x, axes, strand.values, strict=True) if (y := axis.at(value)) is not None
    ]
    if len(points) < 2:
        return ""
    path = f"M{points[0][0]:.1f} {points[0][1]:.1f}"
    for (left, above), (right, below) in pairwise(points):
        middle = (left + right) / 2  # a bend at each axis, so that two lines that meet there can be told apart
        path += f"C{middle:.1f} {above:.1f} {middle:.1f} {below:.1f} {right:.1f} {below:.1f}"
    look = "strand best" if strand.merit == 1 else "strand"
    opacity = "" if strand.merit == 1 else f' style="opacity:{0.12 + 0.68 * strand.merit:.2f}"'
    return (
        f'<path class="{look}{" dashed" if strand.dashed else ""}"{opacity} d="{path}">'
        f"<title>{escape(strand.label)}</title></path>"
    )


def _axis(name: str, axis: _Upright, x: float) -> str:
    foot = HEIGHT - BOTTOM
    parts = [
        f'<line class="axis" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{foot}"/>',
        f'<text class="axis-name middle" x="{x:.1f}" y="{TOP - 20}">{escape(name)}</text>',
    ]
    for text, y in axis.labels:
        parts.append(f'<line class="axis" x1="{x - 4:.1f}" x2="{x:.1f}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="tick end halo" x="{x - 8:.1f}" y="{y + 4:.1f}">{escape(text)}</text>')
    return "".join(parts)
