"""recurra submit, status, logs, stop: runs that a cluster goes on with by itself."""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from recurra.cli.options import Address, JobFileArgument, Json, Overrides
from recurra.cli.output import duration, emit_json, moment, note, say, show_facts, show_table

if TYPE_CHECKING:
    from recurra.orchestration.submit import Jobs, JobStatus

PANEL = "Jobs on a cluster"
Job = Annotated[str, typer.Argument(metavar="JOB", help="Id that 'recurra submit' printed.", show_default=False)]


def register(app: typer.Typer) -> None:
    for command in (submit, status, logs, stop):
        app.command(rich_help_panel=PANEL)(command)


def submit(
    file: JobFileArgument,
    override: Overrides = [],  # noqa: B006
    address: Address = None,
    job_id: Annotated[
        str | None, typer.Option("--id", help="Id of the job; one that exists is refused.", show_default=False)
    ] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Print the log until the job ends.")] = False,
    json: Json = False,
) -> None:
    """Start training on a cluster and return; the run goes on there.

    Example: recurra submit job.yaml --address http://head:8265 --follow
    """
    from recurra.orchestration.job_file import load_job

    job = load_job(file, override)
    jobs = _jobs(address)
    made = jobs.submit(job, job_id)
    if json:
        emit_json({"id": made, "run": job.name})
    else:
        say(made)
        note(f"Follow it: recurra logs -f {made}\nAsk for it: recurra status {made}\nEnd it:    recurra stop {made}")
    if follow:
        _follow(jobs, made)


def status(
    job: Annotated[str | None, typer.Argument(metavar="[JOB]", help="Default: all jobs.", show_default=False)] = None,
    address: Address = None,
    json: Json = False,
) -> None:
    """Show one job, or all of them.

    With a job: exit code 0 while it runs or after it succeeded, 6 when it failed or was stopped.

    Example: recurra status sentiment-20261122-210734-9f3a
    """
    jobs = _jobs(address)
    if job is None:
        found = jobs.list()
        if json:
            emit_json([asdict(one) for one in found])
        elif not found:
            note("No jobs yet. Start one: recurra submit job.yaml")
        else:
            rows = [(one.id, one.status, moment(one.started_s), _took(one)) for one in found]
            show_table(("job", "status", "started", "took"), rows, right=("took",))
        return
    one = jobs.status(job)
    if json:
        emit_json(asdict(one))
    else:
        show_facts(
            (
                ("job", one.id),
                ("run", one.run),
                ("status", one.status),
                ("started", moment(one.started_s)),
                ("took", _took(one)),
                ("message", one.message or "-"),
            )
        )
    if one.status in ("FAILED", "STOPPED"):
        raise typer.Exit(6)


def logs(
    job: Job,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the job ends.")] = False,
    address: Address = None,
) -> None:
    """Print what a job printed.

    Example: recurra logs -f sentiment-20261122-210734-9f3a
    """
    jobs = _jobs(address)
    if follow:
        _follow(jobs, job)
    else:
        sys.stdout.write(jobs.logs(job))


def stop(job: Job, address: Address = None, json: Json = False) -> None:
    """End a job; its checkpoints stay, and the same run can be submitted again to go on.

    Example: recurra stop sentiment-20261122-210734-9f3a
    """
    ended = _jobs(address).stop(job)
    if json:
        emit_json(asdict(ended))
    else:
        say(f"{ended.id} is {ended.status}.")


def _jobs(address: str | None) -> Jobs:
    from recurra.orchestration.address import need_cluster
    from recurra.orchestration.submit import Jobs

    return Jobs(need_cluster(address).dashboard_url())


def _follow(jobs: Jobs, job: str) -> None:
    """Print the log until the job ends; leaves with 6 when it did not succeed."""
    try:
        for text in jobs.follow(job):
            sys.stdout.write(text)
            sys.stdout.flush()
    except KeyboardInterrupt:
        note(f"\nThe job goes on. Follow it again: recurra logs -f {job}", style="yellow")
        raise
    ended = jobs.wait(job, timeout_s=60.0)
    note(f"{ended.id} {ended.status}" + (f": {ended.message}" if ended.status == "FAILED" else ""))
    if ended.status != "SUCCEEDED":
        raise typer.Exit(6)


def _took(job: JobStatus) -> str:
    return duration(job.ended_s - job.started_s) if job.started_s and job.ended_s else "-"
