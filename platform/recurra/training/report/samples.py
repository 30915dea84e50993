"""Sample outputs of a task as HTML, by what a sample holds."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np

from recurra.training.report.plot import Frame, Series, line_plot


def sample_html(sample: dict[str, Any]) -> str:
    """One sample: forecasts and scores as plots, bits as squares, text with the wrong guesses marked, anything else as a table."""
    if "quantiles" in sample:
        return _forecast(sample)
    if "marked" in sample:
        return _scores(sample)
    if "bits" in sample:
        return _bits("asked", sample["bits"], sample["bits"]) + _bits("answered", sample["answer"], sample["bits"])
    if "guesses" in sample:
        return _guesses(sample)
    return _table(sample)


def _forecast(sample: dict[str, Any]) -> str:
    actual = np.array(sample["actual"], np.float64)
    bands = np.array(sample["quantiles"], np.float64)
    steps = np.arange(1, len(actual) + 1, dtype=np.float64)
    middle = int(np.argmin(np.abs(np.array(sample["levels"]) - 0.5)))
    name = f"median, band {sample['levels'][0]:g} to {sample['levels'][-1]:g}"
    return line_plot(
        [
            Series(name, steps, bands[:, middle], 0, low=bands[:, 0], high=bands[:, -1]),
            Series("actual", steps, actual, 1, dots=True),
        ],
        Frame(x_label="steps ahead"),
    )


def _scores(sample: dict[str, Any]) -> str:
    """Anomaly scores over time; marked steps are drawn again, in another colour."""
    scores = np.array(sample["scores"], np.float64)
    steps = np.arange(len(scores), dtype=np.float64)
    lines = [Series("score", steps, scores, 0)]
    if any(sample["marked"]):
        lines.append(Series("marked as anomalous", steps, np.where(sample["marked"], scores, np.nan), 3))
    return line_plot(lines, Frame(x_label="steps"))


def _bits(name: str, rows: Sequence[Sequence[int]], right: Sequence[Sequence[int]]) -> str:
    """Time to the right; wrong bits in another colour."""
    size = 11
    cells = [
        f'<rect class="{"bit" if value == truth else "bit wrong"}" x="{step * size}" y="{bit * size}" '
        f'width="{size - 1}" height="{size - 1}" fill-opacity="{0.95 if value else 0.12 if value == truth else 0.55}"/>'
        for step, (values, truths) in enumerate(zip(rows, right, strict=True))
        for bit, (value, truth) in enumerate(zip(values, truths, strict=True))
    ]
    width, height = len(rows) * size, len(rows[0]) * size
    picture = f'<svg class="bits" viewBox="0 0 {width} {height}" style="width:{width}px">{"".join(cells)}</svg>'
    return f'<div class="sample-name">{escape(name)}</div>{picture}'


def _guesses(sample: dict[str, Any]) -> str:
    text, guesses = str(sample["text"]), str(sample["guesses"])
    if len(text) == len(guesses):
        marked = "".join(
            f"<span>{escape(letter)}</span>" if letter == guess else f'<span class="miss">{escape(letter)}</span>'
            for letter, guess in zip(text, guesses, strict=True)
        )
        body = f'<pre class="text">{marked}</pre><pre class="text guess">{escape(guesses)}</pre>'
    else:
        body = f'<pre class="text">{escape(text)}</pre><pre class="text guess">{escape(guesses)}</pre>'
    return f'{body}<div class="sample-name">{sample.get("bits_per_token", 0.0):.2f} bits a token</div>'


def _table(sample: dict[str, Any]) -> str:
    wrong = "label" in sample and "guess" in sample and sample["label"] != sample["guess"]
    rows = "".join(f"<tr><th>{escape(str(key))}</th><td>{_value(value)}</td></tr>" for key, value in sample.items())
    return f'<table class="sample{" missed" if wrong else ""}">{rows}</table>'


def _value(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else escape(str(value))
