"""sweep.html: the trials of a sweep on one page: a table, parallel coordinates, and how the metric went in each."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from recurra.training.report.axis import number_text
from recurra.training.report.parallel import Strand, parallel_plot
from recurra.training.report.plot import WIDE, Frame, Series, line_plot

SWEEP_REPORT = "sweep.html"

TrialState = Literal["finished", "stopped early", "diverged", "failed", "interrupted", "running", "waiting"]
"""The first three are over."""

_COLOURED = 6
"""Of the best trials' curves; the others are faint, since nobody tells more colours apart."""
_OTHERS = 7


@dataclass(frozen=True)
class TrialRow:
    """One trial, as its run's prefix tells of it."""

    name: str
    settings: dict[str, Any]
    """Dotted path -> value, of what the sweep varies."""
    state: TrialState
    step: int = 0
    """Updates so far."""
    steps: int | None = None
    value: float | None = None
    """Of the sweep's metric: of the best checkpoint over all evaluation data, or else the best that was seen."""
    curve: list[tuple[int, float]] = field(default_factory=list)
    """Step and metric of each evaluation."""
    reason: str = ""
    """Why it ended, or its error."""

    @property
    def over(self) -> bool:
        return self.state in ("finished", "stopped early", "diverged")

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class SweepLog:
    """What the page shows."""

    name: str
    metric: str
    mode: Literal["min", "max"]
    rows: list[TrialRow]
    """Best first."""
    facts: list[tuple[str, str]] = field(default_factory=list)
    job: dict[str, Any] = field(default_factory=dict)

    @property
    def best(self) -> TrialRow | None:
        """The best of the trials that have a checkpoint to show for it."""
        return next((row for row in self.rows if _counts(row)), None)


def ranked(rows: Sequence[TrialRow], mode: Literal["min", "max"]) -> list[TrialRow]:
    """Best first; those without a number last, in their own order."""
    sign = 1 if mode == "min" else -1
    return sorted(rows, key=lambda row: sign * row.value if _has_value(row) and row.value is not None else math.inf)


def render_sweep(log: SweepLog) -> str:
    """The page."""
    environment = Environment(
        loader=PackageLoader("recurra.training", "report"), autoescape=True, undefined=StrictUndefined
    )
    paths = list(log.rows[0].settings) if log.rows else []
    return environment.get_template("sweep.html.jinja").render(
        name=log.name,
        metric=log.metric.replace("_", " "),
        good="less is better" if log.mode == "min" else "more is better",
        cards=_cards(log),
        strands=Markup(_strands(log, paths)),
        curves=Markup(_curves(log)),
        columns=[short_name(path, paths) for path in paths],
        rows=[(row, [setting_text(row.settings[path]) for path in paths], setting_text(row.value)) for row in log.rows],
        best=log.best.name if log.best else "",
        facts=log.facts,
        job=json.dumps(log.job, indent=2),
    )


def short_name(path: str, paths: Sequence[str]) -> str:
    """The last word of a dotted path, or as many as tell it from the others."""
    words = path.split(".")
    for count in range(1, len(words)):
        short = ".".join(words[-count:])
        if sum(other == short or other.endswith(f".{short}") for other in paths) == 1:
            return short
    return path


def setting_text(value: Any) -> str:
    """A value of a setting in a few letters: four digits, yes or no, of a section what is set."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {setting_text(one)}" for name, one in value.items() if one is not None)
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _cards(log: SweepLog) -> list[tuple[str, str]]:
    cards = []
    if log.best is not None and log.best.value is not None:
        cards.append((f"{log.best.value:.4g}", f"best {log.metric}"))
        cards.append((log.best.name.removeprefix(f"{log.name}-"), "best trial"))
    states = [row.state for row in log.rows]
    cards.append((str(len(states)), "trials"))
    cards += [(str(states.count(state)), state) for state in dict.fromkeys(states)]
    made = sum(row.step for row in log.rows)
    whole = sum(row.steps or 0 for row in log.rows)
    cards.append((number_text(float(made)), "updates made"))
    if whole > made:
        cards.append((f"{1 - made / whole:.0%}", "updates spared"))
    return cards


def _strands(log: SweepLog, paths: Sequence[str]) -> str:
    counted = [row for row in log.rows if _has_value(row)]
    merits = np.linspace(1.0, 0.0, len(counted)) if len(counted) > 1 else np.ones(len(counted))
    strands = [
        Strand(
            f"{row.name}: {setting_text(row.value)}, {row.state}",
            [*(_place(row.settings[path]) for path in paths), row.value],
            float(merit),
            dashed=row.state != "finished",
        )
        for row, merit in zip(counted, merits, strict=True)
    ]
    return parallel_plot(
        [*(short_name(path, paths).replace("_", " ") for path in paths), log.metric.replace("_", " ")], strands
    )


def _curves(log: SweepLog) -> str:
    series = []
    for place, row in enumerate(log.rows):
        steps = np.array([step for step, _ in row.curve], np.float64)
        values = np.array([value for _, value in row.curve], np.float64)
        colour = place if place < _COLOURED else _OTHERS
        series.append(Series(row.name, steps, values, colour, faint=place >= _COLOURED, dots=place < _COLOURED))
    return line_plot(series, Frame(width=WIDE, height=300))


def _has_value(row: TrialRow) -> bool:
    return row.value is not None and math.isfinite(row.value)


def _counts(row: TrialRow) -> bool:
    return _has_value(row) and row.state in ("finished", "stopped early")


def _place(value: Any) -> Any:
    """On an axis: a number, or the words for anything else."""
    if value is None:
        return "none"
    return value if isinstance(value, (int, float)) and not isinstance(value, bool) else setting_text(value)
