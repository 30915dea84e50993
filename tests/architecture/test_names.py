"""Sizes and names, as tests/architecture keeps them: what a reader may rely on in every file."""

import ast
import re
import sys
from pathlib import Path

import pytest

from recurra.telemetry.table import TABLE, markdown_table

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "platform" / "recurra"
FILES = {file.relative_to(SOURCE).as_posix(): file.read_text(encoding="utf-8") for file in SOURCE.rglob("*.py")}
TREES = {name: ast.parse(text) for name, text in FILES.items()}
LONGEST_FILE = 500
LONGEST_FUNCTION = 80
STANDARD_NAMES = {"data/inspect.py"}
"""Named like a module of the standard library, and after the command that it is for."""


def functions():
    for name, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                yield name, node


def test_no_file_is_longer_than_a_reader_can_hold():
    """Above this a file has two subjects."""
    tests = {file.relative_to(ROOT).as_posix(): file.read_text() for file in (ROOT / "tests").rglob("*.py")}
    long = {name: text.count("\n") for name, text in {**FILES, **tests}.items() if text.count("\n") > LONGEST_FILE}

    assert long == {}


def test_no_function_is_longer_than_two_screens():
    """Tables of routes and of command-line options are the longest there are."""
    long = {
        f"{name}:{node.name}": node.end_lineno - node.lineno + 1
        for name, node in functions()
        if node.end_lineno - node.lineno >= LONGEST_FUNCTION
    }

    assert long == {}


def test_no_function_has_more_parameters_than_a_reader_can_keep_apart():
    """Five are the aim and seven the end (Pipeline has them). The commands' options are what typer makes of them."""
    crowded = {
        f"{name}:{node.name}": count
        for name, node in functions()
        if not name.startswith("cli/")
        if (
            count := sum(
                arg.arg not in ("self", "cls")
                for arg in [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            )
        )
        > 7
    }

    assert crowded == {}


def test_a_helper_lives_by_its_user_or_earns_a_name():
    """A file of helpers grows until it knows everything."""
    stems = {Path(name).stem for name in FILES}
    shadowing = {name for name in FILES if Path(name).stem in sys.stdlib_module_names - {"__init__", "__main__"}}

    assert not stems & {"utils", "util", "helpers", "helper", "common", "misc", "base_utils"}
    assert shadowing <= STANDARD_NAMES


def test_no_class_is_a_manager():
    """It says that something is done, not what."""
    names = [node.name for tree in TREES.values() for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]

    assert [name for name in names if name.endswith(("Manager", "Helper", "Util", "Utils"))] == []


def test_nothing_is_left_for_later_in_the_code():
    """What is left for later stands in the closing note, where somebody looks for it."""
    found = {name for name, text in FILES.items() if re.search(r"\b(TODO|FIXME|XXX|HACK)\b", text)}

    assert found == set()


def test_every_file_says_what_it_is():
    """The first line is what a reader decides by."""
    assert [name for name, tree in TREES.items() if not ast.get_docstring(tree)] == []


def test_unit_tests_mirror_the_rooms():
    """The test of a file is found without searching."""
    rooms = {path.name for path in SOURCE.iterdir() if path.is_dir()} | {"jobs"}
    unit = ROOT / "tests" / "unit"

    assert {path.name for path in unit.iterdir() if path.is_dir() and path.name != "__pycache__"} <= rooms


@pytest.mark.parametrize("metric", TABLE, ids=lambda metric: metric.name)
def test_a_metric_of_the_table_is_counted_somewhere(metric):
    """A row that nobody fills is an empty panel."""
    assert any(metric.name in text for name, text in FILES.items() if name != "telemetry/table.py")


def test_the_readme_lists_every_metric():
    """`recurra.telemetry.table.markdown_table()` writes the table for README's section on metrics."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    missing = [row for row in markdown_table().splitlines() if row not in readme]

    assert missing == []
