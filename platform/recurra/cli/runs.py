"""recurra runs list, show, compare, watch; recurra rerun."""

from __future__ import annotations

import json as json_module
from typing import TYPE_CHECKING, Annotated, Any

import typer

from recurra.cli.options import Address, Json
from recurra.cli.output import (
    Progress,
    duration,
    emit_json,
    emit_line,
    moment,
    note,
    number,
    say,
    show_facts,
    show_table,
)

if TYPE_CHECKING:
    from recurra.storage.store import Store
    from recurra.training.comparison import Comparison, LossComparison
    from recurra.training.runs import RunSummary

runs_app = typer.Typer(help="What has been trained: how far each run is, and what it left.", no_args_is_help=True)

DEFAULT_RUNS = "s3://recurra/runs"
Runs = Annotated[str, typer.Option("--runs", "-R", metavar="URL", help="Prefix of the runs ('runs' of a job file).")]
Name = Annotated[str, typer.Argument(metavar="RUN", help="Name of the run.", show_default=False)]
_STYLES = {"running": "cyan", "finished": "green", "failed": "red", "lost": "red", "stopped": "yellow"}


def register(app: typer.Typer) -> None:
    app.add_typer(runs_app, name="runs", rich_help_panel="Train")
    app.command(rich_help_panel="Train")(rerun)


@runs_app.command("list")
def list_runs(runs: Runs = DEFAULT_RUNS, json: Json = False) -> None:
    """List all runs, the latest first.

    Example: recurra runs list --runs s3://recurra/runs
    """
    from recurra.orchestration.local_platform import join_local_platform
    from recurra.training import runs as room

    join_local_platform()
    found = room.list_runs(runs)
    if json:
        emit_json([one.to_json() for one in found])
    elif not found:
        note(f"{runs} has no runs yet. Start one: recurra train job.yaml")
    else:
        columns = ("run", "state", "step", "loss", "metrics", "heard of")
        rows = [
            (one.name, one.state, _progress(one), _number(one.loss), _headline(one), moment(one.heard_s)[5:16])
            for one in found
        ]
        show_table(columns, rows, right=("step", "loss"))


@runs_app.command()
def show(run: Name, runs: Runs = DEFAULT_RUNS, json: Json = False) -> None:
    """Show one run: how far it is, its last numbers, its attempts, and where it left what.

    Example: recurra runs show sentiment
    """
    from recurra.training import runs as room

    store = _open(runs, run)
    summary, events = room.summarise(store), room.read_events(store)
    data, command = room.data_of(store), room.read_json(store, "command.json")
    environment, files = room.read_json(store, "environment.json"), _files(store)
    if json:
        facts = {"data": data, "environment": environment, "command": command, "events": events, "files": files}
        emit_json({**summary.to_json(), "url": store.url, **facts})
        return
    _show_run(summary, store.url, data, _commits(environment, command))
    rows = [_attempt(event, events) for event in events if event["event"] == "started"]
    show_table(("attempt", "started", "workers", "from step", "to step", "ended by"), rows, right=("workers",))
    say()
    show_facts(_shown_files(files))


@runs_app.command()
def compare(
    run: Annotated[list[str], typer.Argument(metavar="RUN RUN...", help="Two runs or more.", show_default=False)],
    runs: Runs = DEFAULT_RUNS,
    json: Json = False,
) -> None:
    """Show where runs differ: settings, versions, results, and the first update whose loss is another.

    Example: recurra runs compare sentiment-lstm sentiment-gru
    """
    from recurra.errors import ConfigError
    from recurra.training.comparison import compare as compare_stores

    if len(run) < 2:
        raise ConfigError(
            f"There is nothing to compare '{run[0]}' with. Name another run: runs compare {run[0]} OTHER."
        )
    found = compare_stores([_open(runs, name) for name in run])
    if json:
        emit_json(found.to_json())
    else:
        _show_comparison(found)


@runs_app.command()
def watch(
    run: Name,
    runs: Runs = DEFAULT_RUNS,
    every: Annotated[float, typer.Option("--every", min=0.1, help="Seconds between two looks.")] = 5.0,
    json: Json = False,
) -> None:
    """Follow a run, wherever it was started, until it ends.

    Exit code 0 when it finished, 6 when it failed, was stopped or fell silent. --json prints one document a line.

    Example: recurra runs watch sentiment
    """
    from recurra.training.runs import follow

    progress = Progress()
    summary: RunSummary | None = None
    for summary in follow(_open(runs, run), every_s=every):
        if json:
            emit_line(json_module.dumps(summary.to_json()))
        else:
            progress(_line(summary))
    assert summary is not None  # `follow` speaks at least once
    if summary.state != "finished":
        note(f"Run '{run}' is {summary.state}. The command that started it goes on from its last checkpoint.", "yellow")
        raise typer.Exit(6)


def rerun(
    run: Name,
    name: Annotated[
        str | None, typer.Option("--name", help="Of the new run; default: RUN-rerun.", show_default=False)
    ] = None,
    runs: Runs = DEFAULT_RUNS,
    address: Address = None,
    json: Json = False,
) -> None:
    """Make a run again from what it left in the store, and compare the losses, update by update.

    Nothing is published. Exit code 0 when all losses are the same bit for bit, 6 when one differs.

    Example: recurra rerun sentiment
    """
    from recurra.config.env import apply_ray_environment
    from recurra.orchestration.address import find_cluster
    from recurra.orchestration.local_platform import join_local_platform
    from recurra.training.rerun import prepare_rerun

    join_local_platform()
    prepared = prepare_rerun(runs, run, name)
    cluster = find_cluster(address)
    progress = Progress()
    progress(f"run '{run}' again, as '{prepared.run.name}'")
    for difference in prepared.differences:
        note(f"Not as it was: {difference}", style="yellow")
    apply_ray_environment()
    from recurra.training.ray_launch import launch

    launch(prepared.run, cluster.driver_address() if cluster else None, lambda event: progress(event.line()))
    losses = prepared.outcome()
    if json:
        facts = {"first_difference": losses.first_difference, "largest_difference": losses.largest_difference}
        last = {"updates": losses.common, "loss": losses.last[0], "loss_again": losses.last[1]}
        emit_json({"run": run, "rerun": prepared.run.name, "same": losses.equal, **last, **facts})
    else:
        say(_verdict(run, prepared.run.name, losses), style="green" if losses.equal else "red")
    if not losses.equal:
        raise typer.Exit(6)


def _open(runs: str, name: str) -> Store:
    from recurra.orchestration.local_platform import join_local_platform
    from recurra.training.runs import open_run

    join_local_platform()
    return open_run(runs, name)


def _show_run(summary: RunSummary, url: str, data: dict[str, Any], commits: str) -> None:
    took = (summary.heard_s or 0.0) - (summary.started_s or 0.0)
    say(f"{summary.name}: {summary.state}", style=_STYLES[summary.state])
    facts: list[tuple[str, object]] = [
        ("task", f"{summary.task}, cell {summary.cell}"),
        ("progress", f"update {_progress(summary)}, loss {_number(summary.loss)}"),
        ("metrics", ", ".join(f"{name} {_number(value)}" for name, value in summary.metrics.items()) or "-"),
        ("speed", f"{_number(summary.tokens_per_s)} steps of data a second"),
        ("started", f"{moment(summary.started_s)}, {duration(max(took, 0.0))} until it was heard of last"),
        *((f"data, {split}", f"{one['url']} version {one['version']}") for split, one in sorted(data.items()) if one),
        ("source", commits),
        ("at", url),
    ]
    if summary.reason:
        facts.insert(1, ("ended", summary.reason))
    show_facts(facts)
    say()


def _show_comparison(found: Comparison) -> None:
    for title, rows in (("Results", found.results), ("Settings", found.settings), ("Surroundings", found.environment)):
        if rows:
            say(title, style="bold underline")
            show_table(("", *found.runs), [(name, *map(_cell, values)) for name, values in rows.items()])
            say()
        else:
            say(f"{title}: no difference")
    for other, losses in zip(found.runs[1:], found.losses, strict=True):
        say(_verdict(found.runs[0], other, losses))


def _verdict(run: str, other: str, losses: LossComparison) -> str:
    if not losses.common:
        return f"{run} and {other} have no update in common."
    if losses.equal:
        return f"{other} has the losses of {run}, bit for bit, at all {losses.common} updates; last {losses.last[0]!r}."
    return (
        f"{other} differs from {run} from update {losses.first_difference} of {losses.common} on, by up to "
        f"{losses.largest_difference:.3g} in the loss; last {_number(losses.last[0])} and {_number(losses.last[1])}."
    )


def _attempt(start: dict[str, Any], events: list[dict[str, Any]]) -> tuple[str, ...]:
    own = [event for event in events if event["attempt"] == start["attempt"]]
    ended = {"finished": "all done", "failed": "an error"}.get(own[-1]["event"], "-")
    came_from = "-" if start["resumed_from"] is None else str(start["resumed_from"])
    return start["attempt"], moment(start["time"]), str(start["workers"]), came_from, str(own[-1]["step"]), ended


def _files(store: Store) -> dict[str, str]:
    """What is worth opening, by name."""
    names = ("report.html", "steps.parquet", "events.parquet", "job.json", "platform.patch", "command.patch")
    present = {info.key for info in store.list()}
    found = {name: f"{store.url}/{name}" for name in names if name in present}
    if checkpoints := sorted(key.split("/")[1] for key in present if key.endswith("/manifest.json")):
        found["checkpoints"] = ", ".join(str(int(step)) for step in checkpoints)
    if stalls := sum(key.startswith("stalls/") for key in present):
        found["stalls"] = f"{stalls} in {store.url}/stalls/"
    return found


def _shown_files(files: dict[str, str]) -> list[tuple[str, object]]:
    """Addresses where they are to be opened; names where they only lie beside one another."""
    whole = ("report.html", "checkpoints", "stalls")
    beside = ", ".join(name for name in files if name not in whole)
    return [*((name, files[name]) for name in whole if name in files), *([("beside it", beside)] if beside else [])]


def _commits(environment: dict[str, Any], command: dict[str, Any]) -> str:
    def shown(name: str, git: dict[str, Any] | None) -> list[str]:
        return [f"{name} {git['commit'][:12]}{' + local changes' if git['dirty'] else ''}"] if git else []

    version = (environment.get("packages") or {}).get("recurra", "-")
    return ", ".join([f"recurra {version}", *shown("at", environment.get("git")), *shown("job at", command.get("git"))])


def _line(summary: RunSummary) -> str:
    parts = [f"{summary.state} {_progress(summary)}", f"loss {_number(summary.loss)}"]
    if summary.tokens_per_s and summary.state == "running":
        parts.append(f"tokens/s {number(summary.tokens_per_s)}")
    parts += [f"{name} {_number(value)}" for name, value in list(summary.metrics.items())[:3]]
    return "  ".join([*parts, summary.reason]).rstrip()


def _progress(summary: RunSummary) -> str:
    return f"{summary.step}/{summary.steps}" if summary.steps else str(summary.step)


def _headline(summary: RunSummary) -> str:
    chosen = [item for item in sorted(summary.metrics.items()) if item[0] != "loss"][:1]
    return ", ".join(f"{name} {_number(value)}" for name, value in chosen) or "-"


def _number(value: float | None) -> str:
    return "-" if value is None else number(value)


def _cell(value: Any) -> str:
    return _number(value) if isinstance(value, float) else "-" if value is None else str(value)
