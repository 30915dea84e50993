"""recurra sweep: many runs of one job, to find its settings."""

from __future__ import annotations

import json as json_module
import shlex
from typing import TYPE_CHECKING, Annotated, Any

import typer

from recurra.cli.options import Address, Json
from recurra.cli.output import emit_json, fail, note, number, say, show_facts, show_table

if TYPE_CHECKING:
    from recurra.orchestration.sweep import Sweep
    from recurra.training.report.sweep_page import SweepLog, TrialRow

_COLUMNS, _WIDTH = 4, 10
"""Settings, and letters of a value, that have columns of their own."""


def register(app: typer.Typer) -> None:
    app.command(rich_help_panel="Train")(sweep)


def sweep(
    file: Annotated[str, typer.Argument(metavar="FILE", help="The sweep file (YAML).", show_default=False)],
    plan: Annotated[bool, typer.Option("--plan", help="Show what would run, and every problem; run nothing.")] = False,
    submit: Annotated[bool, typer.Option("--submit", help="Start it on the cluster as a job, and return.")] = False,
    address: Address = None,
    json: Json = False,
) -> None:
    """Train a job with many settings, end the bad ones early, and show which are best.

    Each trial is a run of its own (NAME-001, ...). Typed again after an interruption, it goes on: trials that are over
    are not made again, the others go on from their checkpoints. Exit code 6 when no trial came to an end.

    Example: recurra sweep sweep.yaml --plan
    """
    from recurra.errors import ClusterError
    from recurra.orchestration.address import find_cluster, need_cluster
    from recurra.orchestration.local_platform import join_local_platform
    from recurra.orchestration.narrator import Narrator
    from recurra.orchestration.sweep import Sweep, run_sweep
    from recurra.orchestration.sweep_file import load_sweep
    from recurra.training.report.sweep_page import SWEEP_REPORT

    join_local_platform()
    loaded = load_sweep(file)
    if submit and not plan:
        _submit(loaded, need_cluster(address).dashboard_url(), json)
        return
    prepared = Sweep.prepare(loaded)
    cluster = find_cluster(address)
    if plan:
        _plan(prepared, cluster, file, json)
        return
    if cluster and cluster.gcs is None:
        raise ClusterError(
            f"{cluster.dashboard} is a dashboard, which takes jobs but no driver. "
            "Add --submit, or give the cluster's host:port (often port 6379)."
        )
    where = cluster.driver_address() if cluster else None
    narrator = Narrator(note)
    with narrator.stage(f"sweep: '{loaded.name}' on {where or 'a Ray of its own on this machine'}"):
        log = run_sweep(prepared, where, narrator)
    report = f"{prepared.open_store().url}/{SWEEP_REPORT}"
    if json:
        best = log.best.name if log.best else None
        rows = [row.to_json() for row in log.rows]
        emit_json(
            {"sweep": log.name, "metric": log.metric, "mode": log.mode, "best": best, "trials": rows, "report": report}
        )
    else:
        _show(log, report)
    if any(row.state in ("interrupted", "waiting") for row in log.rows):
        note(f"Stopped. The same command goes on with sweep '{log.name}'.", style="yellow")
        raise typer.Exit(130)
    if log.best is None:
        raise typer.Exit(6)


def _plan(prepared: Sweep, cluster: Any, file: str, json: bool) -> None:
    from recurra.orchestration.plan import cluster_resources, make_plan

    prepared.check_against_earlier_start(prepared.open_store())
    job = prepared.file.job_file().model_copy(update={"publish": None, "serve": None, "name": prepared.trials[0].name})
    made = make_plan(job, cluster_resources(cluster) if cluster and cluster.gcs else None)
    log = prepared.log()
    if json:
        emit_json(
            {
                "sweep": log.name,
                "metric": log.metric,
                "mode": log.mode,
                "problems": made.problems,
                "trials": [row.to_json() for row in sorted(log.rows, key=lambda row: row.name)],
            }
        )
    else:
        show_facts([("sweep", log.name), ("metric", f"{log.metric}, {log.mode}"), *log.facts])
        say()
        _table(log, sorted(log.rows, key=lambda row: row.name))
        for problem in made.problems:
            fail(problem)
        if not made.problems:
            say(f"Ready: recurra sweep {file}", style="green")
    if made.problems:
        raise typer.Exit(2)


def _submit(loaded: Any, dashboard: str, json: bool) -> None:
    from recurra.orchestration.submit import Jobs

    made = Jobs(dashboard).submit_sweep(loaded)
    if json:
        emit_json({"id": made, "sweep": loaded.name})
    else:
        say(made)
        note(f"Follow it: recurra logs -f {made}\nEnd it:    recurra stop {made}")


def _show(log: SweepLog, report: str) -> None:
    _table(log, log.rows)
    say()
    for row in log.rows:
        if row.state in ("diverged", "failed"):
            note(f"{row.name} {row.state}: {row.reason}", style="red")
    facts: list[tuple[str, object]] = [("report", report)]
    if log.best is not None:
        overrides = " ".join(
            f"-o {shlex.quote(f'{path}={_typed(value)}')}" for path, value in log.best.settings.items()
        )
        facts = [("best", f"{log.best.name}, {log.metric} {_number(log.best.value)}"), ("with", overrides), *facts]
    show_facts(facts)


def _table(log: SweepLog, rows: list[TrialRow]) -> None:
    """Within 80 columns: a column for each setting where they are few and short, else one for all."""
    from recurra.training.report.sweep_page import setting_text, short_name

    paths = list(rows[0].settings)
    names = [short_name(path, paths).replace("_", " ") for path in paths]
    metric = log.metric.replace("_", " ")
    values = [[setting_text(row.settings[path]) for path in paths] for row in rows]
    outcomes = [(row.step, _number(row.value), row.state.split()[0]) for row in rows]
    if len(paths) <= _COLUMNS and all(len(value) <= _WIDTH for one in values for value in one):
        cells = [(row.name, *one, *end) for row, one, end in zip(rows, values, outcomes, strict=True)]
        show_table(("trial", *names, "step", metric, "state"), cells, right=(*names, "step", metric))
        return
    told = [", ".join(f"{name} {value}" for name, value in zip(names, one, strict=True)) for one in values]
    rest = [(row.name, *end, text) for row, end, text in zip(rows, outcomes, told, strict=True)]
    show_table(("trial", "step", metric, "state", "settings"), rest, right=("step", metric))


def _number(value: float | None) -> str:
    return "-" if value is None else number(value)


def _typed(value: Any) -> str:
    """As an override takes it."""
    return value if isinstance(value, str) else json_module.dumps(value)
