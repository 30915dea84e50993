"""Bits by length as an SVG that stands alone: one line a model, a band from its best to its worst seed."""

from dataclasses import dataclass
from html import escape

import numpy as np

from recurra.training.report.axis import number_text

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 640, 360, 64, 20, 44, 52
COLOURS = ("#2f6fde", "#e07b16", "#16936b")
FLOOR = 1e-3
"""Bits below which nobody tells a difference: drawn as this."""


@dataclass(frozen=True)
class Sizes:
    """The axis of what was measured: places and names from left to right."""

    names: tuple[str, ...]
    x: np.ndarray
    title: str
    trained: str
    """The largest size of training."""

    @classmethod
    def of(cls, names, trained):
        """Lengths stand to scale; sizes of two numbers, such as 10x20, side by side by their product."""
        if any("x" in name for name in names):
            ordered = sorted(names, key=lambda name: (np.prod([int(part) for part in name.split("x")]), name))
            return cls(tuple(ordered), np.arange(len(ordered), dtype=float), "vectors x repeats", trained)
        ordered = sorted(names, key=int)
        return cls(tuple(ordered), np.array(ordered, float), "length of the sequence", trained)


@dataclass(frozen=True)
class Curve:
    """Bits at each size, over the seeds."""

    name: str
    median: np.ndarray
    low: np.ndarray
    high: np.ndarray


def draw(title, sizes, curves):
    """The picture."""
    low_x, high_x = float(sizes.x.min()), float(sizes.x.max())
    top = 10.0 ** np.ceil(np.log10(max(float(np.max([curve.high.max() for curve in curves])), 10 * FLOOR)))

    def across(value):
        return LEFT + (value - low_x) / (high_x - low_x) * (WIDTH - LEFT - RIGHT)

    def down(bits):
        share = (np.log10(max(bits, FLOOR)) - np.log10(FLOOR)) / (np.log10(top) - np.log10(FLOOR))
        return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)

    parts = [f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>', text(LEFT, 24, title, "t")]
    for power in range(round(np.log10(FLOOR)), round(np.log10(top)) + 1):
        y = down(10.0**power)
        label = f"≤ {FLOOR:g}" if power == round(np.log10(FLOOR)) else number_text(10.0**power)
        parts += [f'<path class="g" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>', text(LEFT - 8, y + 4, label, "e")]
    for name, x in zip(sizes.names, sizes.x, strict=True):
        parts.append(text(across(x), HEIGHT - BOTTOM + 18, name, "m"))
        if name == sizes.trained:
            parts.append(f'<path class="d" d="M{across(x):.1f} {TOP}V{HEIGHT - BOTTOM}"/>')
            parts.append(text(across(x) + 5, HEIGHT - BOTTOM - 6, "trained up to here", "n"))
    parts += [
        text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 12, sizes.title, "m"),
        text(LEFT - 8, TOP - 10, "bits", "e"),
    ]
    for number, curve in enumerate(curves):
        colour = COLOURS[number % len(COLOURS)]
        points = [
            [(across(x), down(y)) for x, y in zip(sizes.x, values, strict=True)] for values in (curve.high, curve.low)
        ]
        band = " L".join(f"{x:.1f} {y:.1f}" for x, y in points[0] + points[1][::-1])
        middle = [(across(x), down(y)) for x, y in zip(sizes.x, curve.median, strict=True)]
        path = " L".join(f"{x:.1f} {y:.1f}" for x, y in middle)
        parts.append(f'<path d="M{band}Z" fill="{colour}" opacity="0.14"/>')
        parts.append(f'<path d="M{path}" fill="none" stroke="{colour}" stroke-width="2.2"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.4" fill="{colour}"/>' for x, y in middle]
        parts.append(f'<rect x="{WIDTH - 210}" y="{12 + 17 * number}" width="11" height="11" rx="3" fill="{colour}"/>')
        parts.append(text(WIDTH - 192, 22 + 17 * number, curve.name, "n"))
    style = (
        "text{font:12px system-ui,'DejaVu Sans',sans-serif;fill:#5d6b7a}.t{font-size:15px;font-weight:600;fill:#16202c}"
        ".e{text-anchor:end}.m{text-anchor:middle}.g{stroke:#e3e8ee;fill:none}.d{stroke:#9aa7b5;stroke-dasharray:3 4;fill:none}"
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}">'
        f"<style>{style}</style>{''.join(parts)}</svg>\n"
    )


def text(x, y, content, kind):
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}">{escape(content)}</text>'
