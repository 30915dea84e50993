"""Plots as inline SVG: lines with bands and marks, a heat map, a time line. Pure functions of numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from numpy.typing import NDArray

from recurra.training.report.axis import Axis, Numbers, number_text, percent_texts, seconds_text

WIDTH, HEIGHT = 470, 224
WIDE = 1240
"""Of heat map and time line."""
LEFT, RIGHT, TOP, BOTTOM = 50, 10, 10, 32
MOST_POINTS = 500
"""Points of a line; longer ones are averaged down to it."""


@dataclass(frozen=True)
class Series:
    """One line, or the points of one."""

    name: str
    x: Numbers
    y: Numbers
    """NaN leaves a gap."""
    colour: int = 0
    """Index of the palette, 0 to 7."""
    faint: bool = False
    """Behind the others, and not in the legend."""
    dots: bool = False
    """A dot at each point, too."""
    low: Numbers | None = None
    high: Numbers | None = None
    """Edges of a band around the line."""


@dataclass(frozen=True)
class Frame:
    """What a plot shows besides its lines."""

    x_label: str = "step"
    log: bool = False
    """Logarithmic y axis; numbers that are not positive are left out."""
    from_zero: bool = False
    percent: bool = False
    marks: tuple[float, ...] = ()
    """Vertical lines, such as restarts."""
    limit: float | None = None
    """A horizontal dashed line, such as the clipping norm."""
    width: int = WIDTH
    height: int = HEIGHT


def line_plot(series: Sequence[Series], frame: Frame = Frame()) -> str:
    """An SVG of lines over a common x axis; a sentence when there is nothing to show."""
    drawn = [reduced for one in series if len((reduced := _reduce(one, frame)).x)]
    if not drawn:
        return '<p class="empty">No numbers yet.</p>'
    x_axis = Axis.around(np.concatenate([one.x for one in drawn]), LEFT, frame.width - RIGHT)
    values = [part for one in drawn for part in (one.y, one.low, one.high) if part is not None]
    limit = [] if frame.limit is None else [np.array([frame.limit])]
    y_axis = Axis.around(
        np.concatenate([*values, *limit]), frame.height - BOTTOM, TOP, log=frame.log, from_zero=frame.from_zero
    )
    parts = [_grid(x_axis, y_axis, frame)]
    parts += [
        f'<line class="mark" x1="{x_axis.at(mark):.1f}" x2="{x_axis.at(mark):.1f}" y1="{TOP}" y2="{frame.height - BOTTOM}"/>'
        for mark in frame.marks
    ]
    if frame.limit is not None:
        y = y_axis.at(frame.limit)
        parts.append(f'<line class="limit" x1="{LEFT}" x2="{frame.width - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
    parts += [_line(one, x_axis, y_axis) for one in sorted(drawn, key=lambda one: not one.faint)]
    return _svg(frame.width, frame.height, "".join(parts)) + legend(
        [(one.name, one.colour) for one in drawn if not one.faint]
    )


def heat_map(names: Sequence[str], values_NT: Numbers, x: Numbers, *, x_label: str = "step") -> str:
    """Rows of cells, dark where log10 of the value is high; for gradient norms of layers over time."""
    if not names or not len(x):
        return '<p class="empty">No numbers yet.</p>'
    columns = min(values_NT.shape[1], 120)
    edges = np.linspace(0, values_NT.shape[1], columns + 1).astype(int)
    logs = np.log10(np.where(values_NT > 0, values_NT, np.nan))
    low, high = float(np.nanmin(logs, initial=0.0)), float(np.nanmax(logs, initial=-12.0))
    row, left = 18, 230
    cell = (WIDE - RIGHT - left) / columns
    parts = []
    for number, name in enumerate(names):
        parts.append(f'<text class="tick end" x="{left - 8}" y="{number * row + 15}">{escape(_shortened(name))}</text>')
        for column in range(columns):
            part = logs[number, edges[column] : edges[column + 1]]
            part = part[np.isfinite(part)]
            strength = 0.0 if not len(part) else 0.06 + 0.94 * (float(part.mean()) - low) / max(high - low, 1e-9)
            parts.append(
                f'<rect class="cell" x="{left + column * cell:.1f}" y="{number * row + 3}" width="{cell - 0.5:.1f}" '
                f'height="{row - 2}" fill-opacity="{strength:.2f}"/>'
            )
    base = len(names) * row + 18
    for share in (0.0, 0.5, 1.0):
        step = float(x[round(share * (len(x) - 1))])
        anchor = {0.0: "start", 0.5: "middle", 1.0: "end"}[share]
        at = left + share * (WIDE - RIGHT - left)
        parts.append(f'<text class="tick {anchor}" x="{at:.1f}" y="{base}">{number_text(step)}</text>')
    parts.append(f'<text class="tick end" x="{left - 8}" y="{base}">{escape(x_label)}</text>')
    caption = f'<p class="note">pale = 10<sup>{low:.1f}</sup>, dark = 10<sup>{high:.1f}</sup></p>'
    return _svg(WIDE, base + 8, "".join(parts)) + caption


@dataclass(frozen=True)
class Span:
    """A bar of a time line."""

    start: float
    end: float
    label: str
    colour: int = 0


@dataclass(frozen=True)
class Mark:
    """Something that took a moment, or a while, under the bars of the time line."""

    start: float
    end: float
    kind: str
    """Its legend entry; each kind has a row."""
    colour: int
    note: str = ""
    """Shown when the mouse is over it."""


def time_line(spans: Sequence[Span], marks: Sequence[Mark]) -> str:
    """Bars one below the other, and short strokes under them, over seconds since the first bar began.

    Args:
        spans: Attempts, by start.
        marks: What happened in them.
    """
    if not spans:
        return '<p class="empty">No events yet.</p>'
    start, row = spans[0].start, 24
    moments = np.array([moment - start for span in spans for moment in (span.start, span.end)])
    height = TOP + row * len(spans) + 26 + BOTTOM
    axis = Axis.around(moments, LEFT, WIDE - RIGHT, from_zero=True)
    parts = []
    for value in axis.ticks():
        x, foot = axis.at(value), height - BOTTOM
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{foot}"/>')
        parts.append(f'<text class="tick middle" x="{x:.1f}" y="{foot + 15}">{seconds_text(value)}</text>')
    for number, span in enumerate(spans):
        left, right = axis.at(span.start - start), axis.at(span.end - start)
        y = TOP + number * row
        parts.append(
            f'<rect class="bar c{span.colour}" x="{left:.1f}" y="{y}" width="{max(2.0, right - left):.1f}" height="16" rx="3"/>'
            f'<text class="bar-label" x="{left + 6:.1f}" y="{y + 12}">{escape(span.label)}</text>'
        )
    kinds = sorted({mark.kind for mark in marks})
    for mark in marks:
        left, right = axis.at(mark.start - start), axis.at(mark.end - start)
        y = TOP + len(spans) * row + 9 * kinds.index(mark.kind)
        parts.append(
            f'<rect class="mark-bar f{mark.colour}" x="{left:.1f}" y="{y}" width="{max(1.6, right - left):.1f}" height="8">'
            f"<title>{escape(f'{mark.kind} {seconds_text(mark.end - start)} {mark.note}'.strip())}</title></rect>"
        )
    return _svg(WIDE, height, "".join(parts)) + legend(sorted({(mark.kind, mark.colour) for mark in marks}))


def legend(entries: Sequence[tuple[str, int]]) -> str:
    """Names with a swatch each; nothing for a single one."""
    if len(entries) < 2:
        return ""
    items = "".join(f'<span><i class="swatch c{colour}"></i>{escape(name)}</span>' for name, colour in entries)
    return f'<div class="legend">{items}</div>'


def smooth(values: Numbers, share: float = 0.02) -> Numbers:
    """A centred moving average over that share of the points, at least one; NaN counts as absent."""
    width = max(1, round(len(values) * share)) | 1
    real = np.isfinite(values)
    kernel = np.ones(width)
    total = np.convolve(np.where(real, values, 0.0), kernel, "same")
    count = np.convolve(real.astype(float), kernel, "same")
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _reduce(series: Series, frame: Frame) -> Series:
    """At most `MOST_POINTS` points, each the mean of its neighbours; without what a logarithm cannot show."""
    x, y = series.x, series.y
    if frame.log:
        y = np.where(y > 1e-30, y, np.nan)
    keep = np.isfinite(x)
    x, y = x[keep], y[keep]
    low, high = (None if edge is None else edge[keep] for edge in (series.low, series.high))
    if len(x) > MOST_POINTS:
        edges = np.linspace(0, len(x), MOST_POINTS + 1).astype(int)[:-1]
        x, y = _means(x, edges), _means(y, edges)
        low, high = (None if edge is None else _means(edge, edges) for edge in (low, high))
    if not np.isfinite(y).any():
        x, y, low, high = np.zeros(0), np.zeros(0), None, None
    return Series(series.name, x, y, series.colour, series.faint, series.dots, low, high)


def _means(values: Numbers, starts: NDArray[np.int64]) -> Numbers:
    real = np.isfinite(values)
    total = np.add.reduceat(np.where(real, values, 0.0), starts)
    count = np.add.reduceat(real.astype(float), starts)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _line(series: Series, x_axis: Axis, y_axis: Axis) -> str:
    points = [
        (x_axis.at(x), y_axis.at(y)) if math.isfinite(y) else None for x, y in zip(series.x, series.y, strict=True)
    ]
    path, pen_down = [], False
    for point in points:
        if point is None:
            pen_down = False
            continue
        path.append(f"{'L' if pen_down else 'M'}{point[0]:.1f} {point[1]:.1f}")
        pen_down = True
    band = ""
    if series.low is not None and series.high is not None:
        upper = [f"{x_axis.at(x):.1f} {y_axis.at(y):.1f}" for x, y in zip(series.x, series.high, strict=True)]
        lower = [f"{x_axis.at(x):.1f} {y_axis.at(y):.1f}" for x, y in zip(series.x, series.low, strict=True)]
        band = f'<path class="band f{series.colour}" d="M{" L".join([*upper, *reversed(lower)])}Z"/>'
    dots = ""
    if series.dots:
        dots = "".join(
            f'<circle class="f{series.colour}" cx="{point[0]:.1f}" cy="{point[1]:.1f}" r="3"><title>{number_text(x)}: '
            f"{y:.5g}</title></circle>"
            for point, x, y in zip(points, series.x, series.y, strict=True)
            if point is not None
        )
    return f'{band}<path class="line s{series.colour}{" faint" if series.faint else ""}" d="{"".join(path)}"/>{dots}'


def _grid(x_axis: Axis, y_axis: Axis, frame: Frame) -> str:
    parts = []
    ticks = y_axis.ticks()
    texts = percent_texts(ticks) if frame.percent else list(map(number_text, ticks))
    for value, text in zip(ticks, texts, strict=True):
        y = y_axis.at(value)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{frame.width - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="tick end" x="{LEFT - 7}" y="{y + 4:.1f}">{text}</text>')
    for value in x_axis.ticks():
        x, text = x_axis.at(value), number_text(value)
        x = min(x, frame.width - 3.4 * len(text))  # a label at the very end stays inside
        parts.append(f'<text class="tick middle" x="{x:.1f}" y="{frame.height - BOTTOM + 16}">{text}</text>')
    parts.append(
        f'<text class="tick end" x="{frame.width - RIGHT}" y="{frame.height - 4}">{escape(frame.x_label)}</text>'
    )
    return "".join(parts)


def _shortened(name: str) -> str:
    return name if len(name) <= 32 else "…" + name[-31:]


def _svg(width: float, height: float, content: str) -> str:
    return f'<svg viewBox="0 0 {width} {height}" role="img">{content}</svg>'
