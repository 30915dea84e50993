"""Options that several commands share, so that they mean the same everywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

JobFileArgument = Annotated[str, typer.Argument(metavar="FILE", help="The job file (YAML).", show_default=False)]
Overrides = Annotated[
    list[str],
    typer.Option(
        "--override", "-o", metavar="KEY=VALUE", help="Change one setting: -o train.steps=100.", show_default=False
    ),
]
Address = Annotated[
    str | None,
    typer.Option(
        "--address",
        "-a",
        help="Ray cluster: host:port, or http://host:8265 of its dashboard. "
        "Default: RECURRA_ADDRESS, RAY_ADDRESS, or the cluster of 'recurra up'.",
        show_default=False,
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for a program.")]
Registry = Annotated[str, typer.Option("--registry", "-r", help="Address of the registry.")]
Output = Annotated[Path | None, typer.Option("--output", "-O", help="Write to this file instead.", show_default=False)]

DEFAULT_REGISTRY = "s3://recurra/registry"
