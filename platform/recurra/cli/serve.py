"""recurra deploy, undeploy, serve status."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from recurra.cli.options import Address, JobFileArgument, Json, Overrides
from recurra.cli.output import Progress, emit_json, note, say, show_facts, show_table

if TYPE_CHECKING:
    from recurra.orchestration.deploy import ApplicationStatus, ServeApi

PANEL = "Serve"
serve_app = typer.Typer(help="Look at what is served.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    app.command(rich_help_panel=PANEL)(deploy)
    app.command(rich_help_panel=PANEL)(undeploy)
    app.add_typer(serve_app, name="serve", rich_help_panel=PANEL)


def deploy(
    file: JobFileArgument,
    override: Overrides = [],  # noqa: B006
    address: Address = None,
    timeout: Annotated[float, typer.Option(help="Seconds to wait until it answers.")] = 180.0,
    port: Annotated[
        int | None, typer.Option(help="HTTP port, if this is the cluster's first application.", show_default=False)
    ] = None,
    json: Json = False,
) -> None:
    """Serve the model of a job file over HTTP, or update what is served, and wait until it answers.

    Example: recurra deploy job.yaml -o serve.replicas=2
    """
    from recurra.orchestration.address import need_cluster
    from recurra.orchestration.deploy import ServeApi
    from recurra.orchestration.job_file import load_job
    from recurra.orchestration.local_platform import join_local_platform
    from recurra.orchestration.release import released, trial_of
    from recurra.registry.registry import Registry

    platform = join_local_platform()
    job = load_job(file, override)
    cluster = need_cluster(address)
    registry = Registry((plain := job.serve_run()).registry)
    run = released(plain, registry)
    digest = run.release.digest or ""
    progress = Progress()
    progress(f"deploying {run.model} ({digest[:12]}) as '{run.name}'")
    api = ServeApi(cluster.dashboard_url())
    done = api.deploy(run, http_port=port or cluster.http_port, timeout_s=timeout, progress=progress)
    trial = trial_of(run, registry)
    if json:
        emit_json({**asdict(done), "model": run.model, "digest": digest, "canary": trial})
        return
    show_facts(
        (
            ("application", done.name),
            ("model", f"{run.model} ({digest[:12]})"),
            ("url", done.url),
            ("replicas", done.replicas),
            *((("canary", trial),) if trial else ()),
        )
    )
    key = f' -H "Authorization: Bearer $(cat {platform.api_key_file})"' if platform and cluster.local else ""
    say(f"Try it: curl{key} {done.url}/v1/models", style="green")


def undeploy(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="Name of the application, or its job file.", show_default=False)
    ],
    address: Address = None,
    timeout: Annotated[float, typer.Option(help="Seconds to wait until its replicas are gone.")] = 120.0,
) -> None:
    """Stop serving an application; the model stays in the registry.

    Example: recurra undeploy sentiment
    """
    name = _name_in(name) if name.endswith((".yaml", ".yml")) else name
    _api(address).undeploy(name, timeout_s=timeout)
    say(f"'{name}' is no longer served.")


@serve_app.command("status")
def serve_status(address: Address = None, json: Json = False) -> None:
    """Show all applications; exit code 7 when one is not running.

    Example: recurra serve status --json
    """
    found = _api(address).statuses()
    if json:
        emit_json([asdict(one) for one in found])
    elif not found:
        note("Nothing is served. Start with: recurra deploy job.yaml")
    else:
        columns = ("application", "status", "model", "route", "replicas")
        show_table(columns, [_row(one) for one in found])
        for one in found:
            if one.message:
                note(f"{one.name}: {one.message}")
    if any(one.status != "RUNNING" for one in found):
        raise typer.Exit(7)


def _row(one: ApplicationStatus) -> tuple[str, ...]:
    replicas = ", ".join(f"{count} {state.lower()}" for state, count in sorted(one.replicas.items()))
    return one.name, one.status, one.model, one.route_prefix, replicas or "none"


def _name_in(file: str) -> str:
    """The name that a job file gives; the rest of it, which would take torch to check, is not looked at."""
    from recurra.config.load import read_file
    from recurra.errors import ConfigError

    name = read_file(file).get("name")
    if not isinstance(name, str):
        raise ConfigError(f"{file} has no 'name'. Give the name of the application: recurra undeploy NAME.")
    return name


def _api(address: str | None) -> ServeApi:
    from recurra.orchestration.address import need_cluster
    from recurra.orchestration.deploy import ServeApi

    return ServeApi(need_cluster(address).dashboard_url())
