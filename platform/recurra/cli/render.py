"""recurra render k8s, serve: a job file as the files of other tools."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from recurra.cli.options import JobFileArgument, Output, Overrides
from recurra.cli.output import note

if TYPE_CHECKING:
    from recurra.orchestration.job_file import JobFile
    from recurra.serving.run import Release

Resolve = Annotated[
    bool,
    typer.Option(
        "--resolve", help="Write down which bundles the references mean now: an alias that moves changes the manifest."
    ),
]

render_app = typer.Typer(help="Write files for Kubernetes or Ray Serve from a job file.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    app.add_typer(render_app, name="render", rich_help_panel="Serve")


@render_app.command()
def k8s(
    file: JobFileArgument,
    override: Overrides = [],  # noqa: B006
    output: Output = None,
    image: Annotated[
        str | None, typer.Option(help="Container image made with deploy/Dockerfile.", show_default=False)
    ] = None,
    namespace: Annotated[
        str | None, typer.Option("--namespace", "-n", help="Default: left to kubectl.", show_default=False)
    ] = None,
    gpu: Annotated[bool, typer.Option("--gpu", help="One NVIDIA GPU for each training worker.")] = False,
    cluster: Annotated[bool, typer.Option("--cluster", help="Also a RayCluster that stays.")] = False,
    resolve: Resolve = False,
) -> None:
    """Print the KubeRay manifests of a job file: a RayJob that trains, a RayService that serves.

    Example: recurra render k8s job.yaml --image registry.example/recurra:1 | kubectl apply -f -
    """
    from recurra.orchestration.job_file import load_job
    from recurra.orchestration.render import RenderOptions, render_kubernetes

    given: dict[str, Any] = {"image": image} if image else {}
    job = load_job(file, override)
    given |= {"release": _release(job)} if resolve else {}
    options = RenderOptions(namespace=namespace, gpu=gpu, cluster=cluster, **given)
    _emit(render_kubernetes(job, options), output)


@render_app.command()
def serve(
    file: JobFileArgument,
    override: Overrides = [],  # noqa: B006
    output: Output = None,
    resolve: Resolve = False,
) -> None:
    """Print the Ray Serve configuration file of a job file, for 'serve deploy' and as a RayService's serveConfigV2.

    Example: recurra render serve job.yaml --output serve.yaml
    """
    from recurra.orchestration.job_file import load_job
    from recurra.orchestration.render import render_serve

    job = load_job(file, override)
    _emit(render_serve(job, _release(job)) if resolve else render_serve(job), output)


def _release(job: JobFile) -> Release:
    """Without its time, so that the same bundles make the same manifest."""
    from recurra.orchestration.local_platform import join_local_platform
    from recurra.orchestration.release import released
    from recurra.registry.registry import Registry

    join_local_platform()
    run = job.serve_run()
    return released(run, Registry(run.registry), lambda: 0.0).release


def _emit(text: str, output: Path | None) -> None:
    from recurra.errors import ConfigError

    if output is None:
        print(text, end="")
        return
    try:
        output.write_text(text, encoding="utf-8")
    except OSError as exc:
        raise ConfigError(f"{output} cannot be written ({exc.strerror}). Give --output another path.") from exc
    note(f"Written: {output}")
