"""recurra train, plan, schema."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from recurra.cli.options import Address, JobFileArgument, Json, Overrides
from recurra.cli.output import Progress, duration, emit_json, fail, note, number, say, show_facts, size

if TYPE_CHECKING:
    from recurra.training.result import RunResult

PANEL = "Train"


def register(app: typer.Typer) -> None:
    app.command(rich_help_panel=PANEL)(train)
    app.command(rich_help_panel=PANEL)(plan)
    app.command(rich_help_panel=PANEL)(schema)


def train(file: JobFileArgument, override: Overrides = [], address: Address = None, json: Json = False) -> None:  # noqa: B006
    """Train a model as the job file says, publish it, and print what came out.

    A run is known by its name: started again after an interruption, it goes on from its last checkpoint.
    Without a cluster, Ray is started on this machine for the time of the run.

    Example: recurra train jobs/sentiment/job.yaml -o train.steps=200
    """
    from recurra.config.env import apply_ray_environment
    from recurra.orchestration.address import find_cluster
    from recurra.orchestration.job_file import load_job
    from recurra.orchestration.local_platform import join_local_platform

    join_local_platform()
    job = load_job(file, override)
    run = job.train_run()
    cluster = find_cluster(address)
    where = cluster.driver_address() if cluster else None
    progress = Progress()
    progress(f"run '{job.name}' on {where or 'a Ray of its own on this machine'}")
    apply_ray_environment()
    from recurra.training.ray_launch import launch

    try:
        result = launch(run, where, lambda event: progress(event.line()))
    except KeyboardInterrupt:
        note(f"Stopped. The same command goes on from the last checkpoint of run '{job.name}'.", style="yellow")
        raise
    if json:
        emit_json(result.to_json())
    else:
        _show_result(result, file, serves=job.serve is not None or job.publish is not None)


def plan(file: JobFileArgument, override: Overrides = [], address: Address = None, json: Json = False) -> None:  # noqa: B006
    """Show what a job file would run, and every problem that would stop it.

    Exit code 2 when there is a problem.

    Example: recurra plan job.yaml -o train.workers=4
    """
    from recurra.orchestration.address import find_cluster
    from recurra.orchestration.job_file import load_job
    from recurra.orchestration.local_platform import join_local_platform
    from recurra.orchestration.plan import cluster_resources, make_plan

    join_local_platform()
    job = load_job(file, override)
    cluster = find_cluster(address)
    made = make_plan(job, cluster_resources(cluster) if cluster and cluster.gcs else None)
    if json:
        emit_json(made.to_json())
    else:
        if cluster is None:
            note("No Ray cluster is known, so CPUs and GPUs were not checked. Start one: recurra up")
        for name, facts in made.facts.items():
            say(name, style="bold underline")
            show_facts((f"  {key}", _shown(key, value)) for key, value in facts.items())
        for problem in made.problems:
            fail(problem)
        if not made.problems:
            say(f"Ready: recurra train {file}" if job.train else f"Ready: recurra deploy {file}", style="green")
    if made.problems:
        raise typer.Exit(2)


def schema(
    section: Annotated[
        str | None, typer.Argument(help="Only this section, such as 'train'.", show_default=False)
    ] = None,
) -> None:
    """Print the JSON schema of the job file, for editors that complete and check YAML.

    Example: recurra schema > recurra.schema.json
    """
    from recurra.config.load import nearest
    from recurra.errors import ConfigError
    from recurra.orchestration.job_file import JobFile

    whole = JobFile.model_json_schema()
    if section is None:
        print(json.dumps({"$schema": "https://json-schema.org/draft/2020-12/schema", **whole}, indent=2))
        return
    if section not in whole["properties"]:
        raise ConfigError(f"The job file has no section '{section}'. {nearest(section, whole['properties'])}")
    print(json.dumps({**whole["properties"][section], "$defs": whole["$defs"]}, indent=2))


def _show_result(result: RunResult, file: str, *, serves: bool) -> None:
    facts: list[tuple[str, object]] = [
        ("run", f"{result.name}, {result.reason}"),
        ("updates", f"{result.steps:,} in {duration(result.duration_s)}, {number(result.tokens)} steps of data"),
        ("best", f"update {result.best_step}, {result.best_checkpoint}"),
        *((name, number(value)) for name, value in sorted(result.metrics.items())),
        ("report", result.report),
    ]
    if result.published:
        alias = f" as {result.published['alias']}" if result.published.get("alias") else ""
        facts.append(("published", f"{result.published['model']}@{result.published['digest'][:12]}{alias}"))
    show_facts(facts)
    if serves and result.published and not file.startswith("base64:"):
        say(f"Next: recurra deploy {file}", style="green")


def _shown(key: str, value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_shown(name, item)}" for name, item in value.items())
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "-"}[value]
    if isinstance(value, int):
        return size(value) if key.endswith("bytes") or key.startswith("memory") else f"{value:,}".replace(",", " ")
    return f"{value:g}" if isinstance(value, float) else str(value)
