"""report.html: what a run did, on one page."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from recurra.storage.store import Store
from recurra.training.report.axis import number_text, seconds_text
from recurra.training.report.heads import heads_html
from recurra.training.report.log import Column, RunLog
from recurra.training.report.plot import Frame, Mark, Series, Span, heat_map, line_plot, smooth, time_line
from recurra.training.report.samples import sample_html

REPORT = "report.html"


def write_report(store: Store, log: RunLog) -> None:
    """Make the report of a run, and put it into its prefix."""
    store.write(REPORT, render(log).encode())


def render(log: RunLog) -> str:
    """The page."""
    environment = Environment(
        loader=PackageLoader("recurra.training", "report"), autoescape=True, undefined=StrictUndefined
    )
    return environment.get_template("page.html.jinja").render(
        name=log.job.get("name", "run"),
        reason=log.result.get("reason", "not finished"),
        cards=_cards(log),
        plots=[(title, note, Markup(svg)) for title, note, svg in _plots(log)],
        layers=Markup(_layers(log)),
        time_line=Markup(_time_line(log)),
        heads=Markup(heads_html(log.heads)) if log.heads else "",
        samples=[Markup(sample_html(sample)) for sample in log.samples],
        metrics=sorted(log.result.get("metrics", {}).items()),
        job=json.dumps(log.job, indent=2),
        facts=_facts(log),
    )


def _cards(log: RunLog) -> list[tuple[str, str]]:
    """Value and name of what one looks for first."""
    steps, result = log.steps, log.result
    cards = [(f"{value:.4g}", name) for name, value in _headline(log)]
    if not steps:
        return cards
    spent = float(np.nansum(steps["seconds"]))
    padded = float(steps["padded_tokens"].sum())
    restarts = max(0, len(log.of_kind("started")) - 1)
    cards += [
        (f"{int(steps['step'][-1]):,}".replace(",", " "), "updates"),
        (number_text(float(result.get("tokens", steps["tokens"].sum()))), "time steps seen"),
        (seconds_text(float(result.get("duration_s", spent))), "duration"),
        (f"{steps['tokens'].sum() / max(spent, 1e-9):,.0f}".replace(",", " "), "time steps a second"),
        (f"{np.nansum(steps['wait_seconds']) / max(spent, 1e-9):.1%}", "waiting for data"),
        (f"{1 - steps['tokens'].sum() / max(padded, 1.0):.1%}", "padding"),
        (str(restarts), "restart" if restarts == 1 else "restarts"),
    ]
    return [*cards, *_checkpoint_cards(log)]


def _checkpoint_cards(log: RunLog) -> list[tuple[str, str]]:
    """What durability cost: how long a checkpoint takes, what training waits for, and what restarts made again."""
    saved = [event for event in log.of_kind("saved") if "blocked_seconds" in event]
    if not saved:
        return []
    durable_s, blocked_s = (
        float(np.median([event[name] for event in saved])) for name in ("seconds", "blocked_seconds")
    )
    lost = sum(int(event.get("lost_steps", 0)) for event in log.of_kind("started"))
    return [
        (f"{durable_s:.2g} s", "until a checkpoint is durable"),
        (f"{1000 * blocked_s:.2g} ms", "training stands still for one"),
        (str(lost), "updates made again after restarts"),
    ]


def _headline(log: RunLog) -> list[tuple[str, float]]:
    """The first evaluation metrics, losses last."""
    metrics = {k: v for k, v in log.result.get("metrics", {}).items() if isinstance(v, (int, float))}
    return sorted(metrics.items(), key=lambda item: item[0] == "loss")[:2]


def _plots(log: RunLog) -> list[tuple[str, str, str]]:
    """Title, note and SVG of each curve."""
    steps = log.steps
    if not steps:
        return []
    x, marks = steps["step"], _restart_steps(log)
    clip = ((log.job.get("train") or {}).get("gradient_clip") or {}).get("norm")
    rate, wait = _per_second(steps), steps["wait_seconds"] / np.maximum(steps["seconds"], 1e-9)
    padding = 1 - steps["tokens"] / np.maximum(steps["padded_tokens"], 1)
    plots = [
        (
            "Loss",
            f"per counted item, in nats{_dotted(marks)}",
            line_plot(
                [
                    Series("each update", x, steps["loss"], 0, faint=True),
                    Series("training", x, smooth(steps["loss"]), 0),
                    *_evaluated(log, "loss", 1),
                ],
                Frame(marks=marks),
            ),
        ),
        *_metric_plots(log, marks),
        ("Learning rate", "", line_plot([Series("rate", x, steps["learning_rate"], 2)], Frame(from_zero=True))),
        (
            "Gradient norm",
            ("before clipping; the dashed line is train.gradient_clip.norm" if clip else "before clipping")
            + _dotted(marks),
            line_plot(
                [
                    Series("each update", x, steps["gradient_norm"], 3, faint=True),
                    Series("norm", x, smooth(steps["gradient_norm"]), 3),
                ],
                Frame(log=True, limit=clip, marks=marks),
            ),
        ),
        (
            "Throughput",
            "real time steps a second",
            line_plot([Series("speed", x, smooth(rate), 4)], Frame(from_zero=True)),
        ),
        (
            "Waste",
            "share of time spent waiting for data, and of computed steps that are padding",
            line_plot(
                [
                    Series("waiting for data", x, smooth(np.minimum(wait, 1.0)), 5),
                    Series("padding", x, smooth(np.maximum(padding, 0.0)), 6),
                ],
                Frame(from_zero=True, percent=True),
            ),
        ),
    ]
    return [*plots, *_reach_plots(log)]


def _dotted(marks: tuple[float, ...]) -> str:
    return "; dotted: where a restart went on from" if marks else ""


def _reach_plots(log: RunLog) -> list[tuple[str, str, str]]:
    """How far back the gradient reaches; a straight fall is an exponential one."""
    if not log.reach:
        return []
    norms = np.array(log.reach["norms"], np.float64)
    half = log.reach["half_life"]
    fall = "never falls to half" if half is None else f"falls to half within {half} step{'' if half == 1 else 's'}"
    symbol = "s" if log.reach["of"] == "state" else "x"
    what = "recurrent state" if log.reach["of"] == "state" else "input"
    note = f"|dL/d{symbol}| by the {what} k steps before the loss; best checkpoint: {fall}"
    lags = np.arange(len(norms), dtype=np.float64)
    plot = line_plot([Series("reach", lags, norms, 7)], Frame(x_label="steps back, k", log=True))
    return [("Gradient reach", note, plot)]


def _metric_plots(log: RunLog, marks: tuple[float, ...]) -> list[tuple[str, str, str]]:
    """Of each metric that moved; counts of what was looked at are none."""
    evaluations = [event["metrics"] for event in log.of_kind("evaluated")]
    plots = []
    for name in sorted({name for metrics in evaluations for name in metrics} - {"loss"}):
        values = {metrics.get(name) for metrics in evaluations} - {None}
        if len(values) > 1 and not all(float(value).is_integer() for value in values):
            plot = line_plot(_evaluated(log, name, 1), Frame(marks=marks))
            plots.append((name.replace("_", " "), "evaluation data", plot))
    return plots[:4]


def _evaluated(log: RunLog, name: str, colour: int) -> list[Series]:
    found = {event["step"]: event["metrics"][name] for event in log.of_kind("evaluated") if name in event["metrics"]}
    if not found:
        return []
    order = sorted(found)
    values = np.array([np.nan if found[step] is None else found[step] for step in order], np.float64)
    return [Series("evaluation", np.array(order, np.float64), values, colour, dots=True)]


def _per_second(steps: dict[str, Column]) -> Column:
    return np.asarray(steps["tokens"] / np.maximum(steps["seconds"], 1e-9))


def _restart_steps(log: RunLog) -> tuple[float, ...]:
    return tuple(float(event["step"]) for event in log.of_kind("started")[1:])


def _layers(log: RunLog) -> str:
    names = sorted(log.layer_norms)[:40]
    values = np.array([log.layer_norms[name] for name in names]) if names else np.zeros((0, 0))
    return heat_map(names, values, log.layer_steps)


def _time_line(log: RunLog) -> str:
    spans, marks = [], []
    kinds = {"saved": ("checkpoint", 2), "evaluated": ("evaluation", 1), "failed": ("failure", 3)}
    last_step_s = float(log.steps["time"][-1]) if log.steps else 0.0
    starts = log.of_kind("started")
    for number, start in enumerate(starts):
        attempt = [float(event["time"]) for event in log.events if event["attempt"] == start["attempt"]]
        is_last = number == len(starts) - 1
        end = max([*attempt, last_step_s]) if is_last else max(attempt)
        came_from = "" if start["resumed_from"] is None else f", from step {start['resumed_from']}"
        workers = f"{start['workers']} worker{'' if start['workers'] == 1 else 's'}"
        spans.append(Span(float(start["time"]), end, f"{workers}{came_from}", 0))
    for event in log.events:
        if event["event"] in kinds:
            name, colour = kinds[event["event"]]
            end, note = float(event["time"]), ""
            if "blocked_seconds" in event:
                blocked_ms = 1000 * event["blocked_seconds"]
                note = (
                    f"of step {event['step']}: durable after {event['seconds']:.2f} s, standstill {blocked_ms:.0f} ms"
                )
            marks.append(Mark(end - float(event.get("seconds", 0.0)), end, name, colour, note))
    return time_line(spans, marks)


def _facts(log: RunLog) -> list[tuple[str, str]]:
    facts: list[tuple[str, Any]] = []
    for split, data in sorted(log.data.items()):
        if data:
            facts.append((f"data, {split}", f"{data['url']} version {data['version']}, {data['sequences']} sequences"))
            facts.append(("", f"manifest {data['digest']}"))
    if published := log.result.get("published"):
        facts.append(("published", f"{published['model']} {published['alias']} {published['digest']}"))
    if "best_checkpoint" in log.result:
        facts.append(("best checkpoint", log.result["best_checkpoint"]))
    git = log.environment.get("git") or {}
    if git:
        facts.append(("git", f"{git['commit']}{', with local changes' if git['dirty'] else ''}"))
    packages = log.environment.get("packages", {})
    facts.append(("packages", ", ".join(f"{name} {version}" for name, version in packages.items() if version)))
    facts.append(("machine", f"Python {log.environment.get('python')}, {log.environment.get('system')}"))
    return [(name, str(value)) for name, value in facts]
