"""Offered load, replicas and latency over one time axis, as an SVG that stands alone."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, LEFT, RIGHT, TOP = 760, 72, 24, 48
PANEL, GAP, BOTTOM = 96, 34, 44
STYLE = (
    "text{font:12px system-ui,'DejaVu Sans',sans-serif;fill:#5d6b7a}.t{font-size:15px;font-weight:600;fill:#16202c}"
    ".h{fill:#16202c}.e{text-anchor:end}.m{text-anchor:middle}.g{stroke:#e3e8ee;fill:none}.k{stroke:#c3ccd6;"
    "stroke-dasharray:3 4;fill:none}"
)


@dataclass(frozen=True)
class Sample:
    """What was seen at one moment of the run."""

    at_s: float
    clients: int
    wanted: int
    """Replicas that run or are being started."""
    running: int
    latency_s: float | None
    """Median of the requests answered lately."""


@dataclass(frozen=True)
class _Panel:
    title: str
    top: float
    highest: float
    ticks: Sequence[float]

    def down(self, value: float) -> float:
        return self.top + PANEL * (1 - value / self.highest)


def draw(title: str, samples: Sequence[Sample], marks: dict[str, float]) -> str:
    """The picture; `marks` are the moments at which the load changed."""
    end_s = samples[-1].at_s
    height = TOP + 3 * PANEL + 2 * GAP + BOTTOM

    def across(at_s: float) -> float:
        return LEFT + at_s / end_s * (WIDTH - LEFT - RIGHT)

    latencies = [sample.latency_s for sample in samples if sample.latency_s is not None]
    panels = [
        _panel(0, "clients (offered load)", max(sample.clients for sample in samples)),
        _panel(1, "replicas: running (filled), wanted (line)", max(sample.wanted for sample in samples)),
        _panel(2, "seconds for a request, median", max(latencies)),
    ]
    parts = [f'<rect width="{WIDTH}" height="{height}" fill="#fff"/>', _text(LEFT, 22, title, "t")]
    for panel in panels:
        parts.append(_text(LEFT, panel.top - 8, panel.title, "h"))
        for value in panel.ticks:
            y = panel.down(value)
            parts.append(f'<path class="g" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>')
            parts.append(_text(LEFT - 8, y + 4, f"{value:g}", "e"))
    for at_s in marks.values():
        parts.append(f'<path class="k" d="M{across(at_s):.1f} {TOP}V{height - BOTTOM}"/>')
    load, replicas, latency = panels
    parts += [
        _area(samples, across, load, lambda sample: sample.clients, "#8a94a6"),
        _area(samples, across, replicas, lambda sample: sample.running, "#2f6fde"),
        _line(samples, across, replicas, lambda sample: sample.wanted, "#16202c"),
        _dots(samples, across, latency),
    ]
    for at_s in range(0, int(end_s) + 1, _round_step(end_s)):
        parts.append(_text(across(at_s), height - BOTTOM + 18, str(at_s), "m"))
    parts.append(_text((LEFT + WIDTH - RIGHT) / 2, height - 8, "seconds", "m"))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}">'
        f"<style>{STYLE}</style>{''.join(parts)}</svg>\n"
    )


def _panel(number: int, title: str, most: float) -> _Panel:
    step = _step(most)
    highest = step * math.ceil(most / step)
    ticks = [step * count for count in range(round(highest / step) + 1)]
    return _Panel(title, TOP + number * (PANEL + GAP), highest, ticks)


def _step(most: float) -> float:
    """Between two lines of a panel: 1, 2 or 5 times a power of ten, three or so of them."""
    power = 10.0 ** math.floor(math.log10(most / 3))
    return next(power * factor for factor in (1, 2, 5, 10) if power * factor * 3 >= most)


def _round_step(end_s: float) -> int:
    return next(step for step in (10, 20, 30, 60, 120, 300) if end_s / step <= 12)


def _steps(samples: Sequence[Sample], across: Callable[[float], float], panel: _Panel, value: Callable) -> str:
    points = [f"{across(samples[0].at_s):.1f} {panel.down(value(samples[0])):.1f}"]
    for before, sample in itertools.pairwise(samples):
        points.append(f"{across(sample.at_s):.1f} {panel.down(value(before)):.1f}")
        points.append(f"{across(sample.at_s):.1f} {panel.down(value(sample)):.1f}")
    return " L".join(points)


def _line(samples: Sequence[Sample], across: Callable, panel: _Panel, value: Callable, colour: str) -> str:
    return f'<path d="M{_steps(samples, across, panel, value)}" fill="none" stroke="{colour}" stroke-width="1.6"/>'


def _area(samples: Sequence[Sample], across: Callable, panel: _Panel, value: Callable, colour: str) -> str:
    floor = panel.down(0)
    left, right = across(samples[0].at_s), across(samples[-1].at_s)
    outline = f"M{left:.1f} {floor:.1f} L{_steps(samples, across, panel, value)} L{right:.1f} {floor:.1f}Z"
    return f'<path d="{outline}" fill="{colour}" opacity="0.35"/>'


def _dots(samples: Sequence[Sample], across: Callable, panel: _Panel) -> str:
    return "".join(
        f'<circle cx="{across(sample.at_s):.1f}" cy="{panel.down(sample.latency_s):.1f}" r="2" fill="#e07b16"/>'
        for sample in samples
        if sample.latency_s is not None
    )


def _text(x: float, y: float, content: str, kind: str) -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}">{escape(content)}</text>'
