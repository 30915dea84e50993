"""recurra render: files for Kubernetes and for Ray Serve."""

from __future__ import annotations

import typer


def register(app: typer.Typer) -> None:
    app.add_typer(render_app, name="render", rich_help_panel="Serve")


render_app = typer.Typer(help="Write files for Kubernetes or Ray Serve from a job file.", no_args_is_help=True)
