"""recurra up, down, env, doctor, demo: this machine."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from recurra.cli.options import Address, Json
from recurra.cli.output import Progress, emit_json, note, say, show_facts, show_table

PANEL = "This machine"


def register(app: typer.Typer) -> None:
    for command in (up, down, env, doctor, demo):
        app.command(rich_help_panel=PANEL)(command)


def up(
    cpus: Annotated[
        int | None, typer.Option(help="Logical CPUs of the cluster. Default: this machine's.", show_default=False)
    ] = None,
    port: Annotated[int, typer.Option(help="HTTP port of deployed applications; 0 = any free one.")] = 8000,
    json: Json = False,
) -> None:
    """Start an object store and a Ray cluster on this machine, and leave them running.

    Later commands find both by themselves. When the environment names an S3 endpoint, that one is used.
    Applications ask for the key in the file 'api-key', since their port is open to the network.

    Example: recurra up --cpus 4
    """
    from recurra.orchestration.local_platform import LocalPlatform, PlatformOptions

    progress = Progress()
    platform = LocalPlatform().up(PlatformOptions(num_cpus=cpus, http_port=port or None), progress)
    progress("ready")
    cluster = platform.cluster
    facts = {
        "ray": cluster.address,
        "dashboard": cluster.dashboard_url,
        "applications": cluster.serve_url,
        "metrics": cluster.metrics_url,
        "object store": platform.environment().get("AWS_ENDPOINT_URL", "of the environment"),
        "api key": str(platform.api_key_file),
        "folder": str(platform.directory),
    }
    if json:
        emit_json({name.replace(" ", "_"): value for name, value in facts.items()})
        return
    show_facts(facts.items())
    say('Other tools: eval "$(recurra env)"', style="green")
    say("Stop both:   recurra down", style="green")


def down() -> None:
    """Stop what 'recurra up' started; stored data, models and runs stay.

    Example: recurra down
    """
    from recurra.orchestration.local_platform import LocalPlatform

    platform = LocalPlatform.find() or LocalPlatform()
    stopped = platform.down()
    say(f"Stopped {len(stopped)} processes; none is left." if stopped else "Nothing was running.")


def env() -> None:
    """Print what other tools need to reach the local store and cluster, as shell commands (with the secret key).

    Example: eval "$(recurra env)" && aws s3 ls s3://recurra
    """
    from recurra.errors import ClusterError
    from recurra.orchestration.local_platform import LocalPlatform

    platform = LocalPlatform.find()
    if platform is None:
        raise ClusterError("Nothing runs on this machine. Start it with 'recurra up'.")
    for name, value in platform.environment().items():
        print(f"export {name}={shlex.quote(value)}")


def doctor(
    address: Address = None,
    bucket: Annotated[str, typer.Option(help="Where to try writing.")] = "s3://recurra",
    json: Json = False,
) -> None:
    """Check Python, packages, memory, HAProxy, the object store and Ray; say what to do about each fault.

    Exit code 7 when a check failed (warnings do not count).

    Example: recurra doctor --address 10.0.0.5:6379
    """
    from recurra.orchestration.doctor import examine
    from recurra.orchestration.local_platform import join_local_platform

    join_local_platform()
    checks = list(examine(address, bucket))
    if json:
        emit_json([check.to_json() for check in checks])
    else:
        marks = {"ok": "ok", "warning": "warn", "failed": "FAIL"}
        show_table(("check", "", "found"), [(check.name, marks[check.level], check.found) for check in checks])
        for check in checks:
            if check.remedy:
                note(f"{check.name}: {check.remedy}", style="yellow" if check.level == "warning" else "red")
    if any(check.level == "failed" for check in checks):
        raise typer.Exit(7)


def demo(
    jobs: Annotated[Path | None, typer.Option(help="Folder 'jobs' of the source tree.", show_default=False)] = None,
    keep: Annotated[bool, typer.Option(help="Go on serving at the end.", envvar="KEEP")] = False,
    steps: Annotated[int | None, typer.Option(help="Train so many updates.", show_default=False)] = None,
) -> None:
    """The whole road in one command: Python's own source text becomes a model that completes Python, served over HTTP.

    Example: recurra demo --keep
    """
    from recurra.orchestration.demo import DemoOptions, run_demo

    run_demo(DemoOptions(jobs=jobs, keep=keep, steps=steps), say)
