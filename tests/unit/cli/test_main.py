"""Every command: starts fast, explains itself, and fails with one message and a code that means something."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest
import typer.main

from recurra import __version__, errors
from recurra.cli import main as cli
from recurra.errors import RecurraError

from .conftest import Command

HEAVY = ("torch", "ray", "pyarrow", "boto3", "pydantic", "fastapi", "numpy", "yaml", "httpx")


def commands() -> Iterator[tuple[str, ...]]:
    """Words of every command, groups included."""

    def walk(group: object, words: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
        for name, command in sorted(group.commands.items()):  # type: ignore[attr-defined]
            yield (*words, name)
            if hasattr(command, "commands"):
                yield from walk(command, (*words, name))

    yield from walk(typer.main.get_command(cli.app), ())


def test_help_imports_nothing_heavy() -> None:
    """Torch and Ray take three seconds: a shell completion must not wait for them."""
    code = f"import sys, recurra.cli.main; print([name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("words", list(commands()), ids=" ".join)
def test_every_command_has_help_with_an_example_and_fits_80_columns(recurra: Command, words: tuple[str, ...]) -> None:
    """An example is read before any option is."""
    shown = recurra(*words, "--help")
    assert shown.code == 0
    assert max(map(len, shown.out.splitlines())) <= 80
    if "COMMAND" not in shown.out:
        assert f"recurra {' '.join(words)}" in " ".join(shown.out.split()).partition("Example: ")[2]


def test_the_commands_of_the_platform_are_all_there() -> None:
    """Renaming one breaks scripts of users."""
    names = {" ".join(words) for words in commands()}
    wanted = {"train", "plan", "schema", "submit", "status", "logs", "stop", "deploy", "undeploy", "doctor", "demo"}
    wanted |= {"up", "down", "env", "serve status", "render k8s", "render serve"}
    wanted |= {f"data {name}" for name in ("write", "inspect", "verify")}
    wanted |= {f"models {name}" for name in ("list", "show", "promote", "rollback", "history")}
    assert wanted <= names


def test_version(recurra: Command) -> None:
    """A bug report starts with it."""
    assert recurra("--version").out == f"recurra {__version__}\n"


@pytest.mark.parametrize("kind", [errors.ConfigError, errors.DataError, errors.ClusterError, errors.TrainingError])
def test_an_error_of_ours_is_one_message_and_its_exit_code(
    recurra: Command, monkeypatch: pytest.MonkeyPatch, kind: type[RecurraError]
) -> None:
    """A script tells by the code what to do; a stack trace tells the user nothing."""

    def fail(**_: object) -> None:
        raise kind("The thing is wrong. Do [this] instead.")

    monkeypatch.setattr(cli, "app", fail)
    outcome = recurra("train")
    assert (outcome.code, outcome.out) == (kind.exit_code, "")
    assert outcome.err == "Error: The thing is wrong. Do [this] instead.\n"


def test_a_fault_of_ours_shows_its_trace_only_when_asked(recurra: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """--verbose may stand anywhere in the line, since it is added to a line that has just failed."""

    def fail(**_: object) -> None:
        raise ZeroDivisionError("by zero")

    monkeypatch.setattr(cli, "app", fail)
    quiet, loud = recurra("train", "x"), recurra("train", "x", "--verbose")
    assert quiet.code == loud.code == 1
    assert "Traceback" not in quiet.err and "--verbose" in quiet.err
    assert "Traceback" in loud.err


def test_an_interruption_is_no_fault(recurra: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """130 is what shells expect after Ctrl-C."""

    def interrupt(**_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "app", interrupt)
    assert recurra("train").code == 130


def test_a_misspelt_command_names_the_nearest(recurra: Command) -> None:
    """Typing it again is then a matter of seconds."""
    outcome = recurra("data", "inspct", "x")
    assert outcome.code == 2
    assert "inspect" in outcome.err


@pytest.mark.parametrize(
    "words", [("status",), ("submit", "job.yaml"), ("serve", "status"), ("logs", "x"), ("stop", "x")]
)
def test_without_a_cluster_a_command_says_how_to_get_one(
    recurra: Command, words: tuple[str, ...], tmp_path: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first thing that a new user meets."""
    monkeypatch.chdir(str(tmp_path))
    with open("job.yaml", "w", encoding="utf-8") as file:
        file.write("name: a\ntask: language_model\ndata: {train: file:///x}\ntrain: {steps: 1}\n")
    outcome = recurra(*words)
    assert outcome.code == 7
    assert "recurra up" in outcome.err
