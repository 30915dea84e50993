"""Who may import whom, and which doors there are to Ray, S3, the environment and the screen."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "platform" / "recurra"
FILES = sorted(SOURCE.rglob("*.py"))
TREES = {file.relative_to(SOURCE).as_posix(): ast.parse(file.read_text(encoding="utf-8")) for file in FILES}


def imported(tree):
    """Dotted names of everything that a file imports, inside functions, too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def importers(package):
    """Files that import a package or something below it."""
    return {name for name, tree in TREES.items() if any((i + ".").startswith(package + ".") for i in imported(tree))}


def test_the_source_root_is_no_package():
    """With an __init__.py it would shadow the standard library's `platform`, and break pytest itself."""
    assert not (SOURCE.parent / "__init__.py").exists()


def test_rooms_import_only_what_the_arrows_allow():
    """The contracts stand in pyproject.toml; a broken arrow is named with the line that breaks it."""
    tool = Path(sys.executable).parent / "lint-imports"
    if not tool.exists():
        pytest.skip("import-linter is not installed (pip install 'recurra[test]')")
    done = subprocess.run([tool, "--no-cache"], check=False, cwd=ROOT, capture_output=True, text=True, timeout=120)

    assert done.returncode == 0, done.stdout


def test_ray_stands_behind_its_doors():
    """Everything else runs, and is tested, without a cluster."""
    training = {"training/ray_launch.py", "training/ray_control.py"}
    doors = {"telemetry/fleet.py", "serving/deployment.py", "serving/vault_actors.py"} | training

    assert {name for name in importers("ray") if not name.startswith("orchestration/")} <= doors


@pytest.mark.parametrize(
    ("package", "door"),
    [
        ("boto3", "storage/s3_client.py"),
        ("botocore", "storage/s3_client.py"),
        ("torch.distributed", "training/ranks.py"),
    ],
)
def test_a_package_has_one_door(package, door):
    """What is imported in one file can be replaced, and tested, in one file."""
    assert importers(package) <= {door}


def test_the_environment_is_read_in_one_file():
    """Every variable that the platform knows is listed in config/env.py."""
    readers = {
        name
        for name, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and node.attr in ("environ", "getenv", "putenv")
    }

    assert readers | importers("os.environ") | importers("os.getenv") == {"config/env.py"}


def test_only_the_command_line_prints():
    """A library that prints breaks programs that read its caller's output."""
    printers = {
        name
        for name, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    }

    assert {name for name in printers | importers("typer") | importers("rich") if not name.startswith("cli/")} == set()


def test_imports_stand_at_the_top():
    """A cycle is broken by moving the shared thing down a room. Commands alone put off what is slow to import."""
    inner = {
        name
        for name, tree in TREES.items()
        for function in ast.walk(tree)
        if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef))
        for node in ast.walk(function)
        if isinstance(node, (ast.Import, ast.ImportFrom))
    }

    assert {name for name in inner if not name.startswith(("cli/", "orchestration/"))} == set()


def test_the_platform_knows_no_job_and_no_test():
    """Applications are built on it, never into it."""
    assert importers("jobs") | importers("tests") == set()


def test_weights_are_never_pickled():
    """Loading a pickle runs whatever is in it."""
    loaders = {
        name
        for name, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
        if (node.value.id, node.attr) in {("torch", "load"), ("torch", "save"), ("pickle", "loads"), ("pickle", "load")}
    }

    assert loaders | importers("pickle") | importers("cloudpickle") == set()
