"""The command `recurra`: one parser; an error becomes one message on stderr and an exit code.

Exit codes: 0 done, 1 a fault of ours, 2 wrong usage or job file, 3 data, 4 object store, 5 model or registry,
6 training or job failed, 7 cluster, 130 interrupted. Nothing heavy is imported before a command needs it.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Sequence
from typing import Annotated

import typer

from recurra.cli import bundles, cluster, data, jobs, models, render, runs, serve, sweep, train
from recurra.cli.output import fail, note
from recurra.errors import RecurraError

EPILOG = """\b
A first round on this machine:
  recurra up                    start an object store and a Ray cluster
  recurra data write --help     turn your files into a dataset
  recurra plan job.yaml         see what would run
  recurra train job.yaml        train and publish
  recurra deploy job.yaml       serve over HTTP
  recurra down                  stop both
\b
Exit codes: 0 done, 2 usage or job file, 3 data, 4 object store, 5 model,
6 training or job failed, 7 cluster, 130 interrupted, 1 a fault of ours.
"""

app = typer.Typer(
    name="recurra",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)


def _version(wanted: bool) -> None:
    if wanted:
        from recurra import __version__

        typer.echo(f"recurra {__version__}")
        raise typer.Exit


@app.callback(epilog=EPILOG)
def root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="With an error, show where it came from.")] = False,
) -> None:
    """Train recurrent networks on a Ray cluster and serve them from the same cluster."""


for room in (data, train, sweep, runs, jobs, models, bundles, serve, render, cluster):
    room.register(app)


def run(arguments: Sequence[str]) -> int:
    """Run one command line; returns the exit code and never raises."""
    verbose = "--verbose" in arguments
    rest = [word for word in arguments if word != "--verbose"]
    try:
        app(args=rest, prog_name="recurra")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 1
    except RecurraError as error:
        if verbose:
            traceback.print_exc()
        fail(str(error))
        return error.exit_code
    except KeyboardInterrupt:
        note("Interrupted.", style="yellow")
        return 130
    except Exception as error:  # noqa: BLE001 - the edge: a fault of ours becomes one message, too
        if verbose:
            traceback.print_exc()
        fail(f"{type(error).__name__}: {error}\nThis is a fault of Recurra. '--verbose' shows where it happened.")
        return 1
    return 0


def main() -> None:
    """Entry point of the console script."""
    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
