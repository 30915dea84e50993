"""recurra render k8s, serve: a job file as the files of other tools."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from recurra.cli.options import JobFileArgument, Output, Overrides
from recurra.cli.output import note

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
) -> None:
    """Print the KubeRay manifests of a job file: a RayJob that trains, a RayService that serves.

    Example: recurra render k8s job.yaml --image registry.example/recurra:1 | kubectl apply -f -
    """
    from recurra.orchestration.job_file import load_job
    from recurra.orchestration.render import RenderOptions, render_kubernetes

    given: dict[str, Any] = {"image": image} if image else {}
    options = RenderOptions(namespace=namespace, gpu=gpu, cluster=cluster, **given)
    _emit(render_kubernetes(load_job(file, override), options), output)


@render_app.command()
def serve(file: JobFileArgument, override: Overrides = [], output: Output = None) -> None:  # noqa: B006
    """Print the Ray Serve configuration file of a job file, for 'serve deploy' and as a RayService's serveConfigV2.

    Example: recurra render serve job.yaml --output serve.yaml
    """
    from recurra.orchestration.job_file import load_job
    from recurra.orchestration.render import render_serve

    _emit(render_serve(load_job(file, override)), output)


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
