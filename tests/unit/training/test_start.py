import importlib.metadata
import json
import subprocess

from recurra.storage.url import open_store
from recurra.training.source_tree import git_state
from recurra.training.start import environment, keep_command, keep_facts


def test_the_environment_names_the_versions_that_matter():
    """Other versions may give other numbers."""
    assert {"torch", "ray", "pyarrow", "recurra"} <= environment()["packages"].keys()


def test_facts_hold_the_version_of_the_data(make_run, tmp_path):
    """Written once: a later start reads what the first one saw."""
    store = open_store(f"file://{tmp_path}/run")
    facts = keep_facts(make_run(), store)

    assert facts["train"]["version"] == 1 and len(facts["train"]["digest"]) == 64
    assert keep_facts(make_run(), store) == facts == json.loads(store.read("data.json"))
    assert json.loads(store.read("job.json"))["name"] == "a"


def test_every_installed_package_is_written_down(make_run, tmp_path):
    """The one that mattered is always the one that nobody thought of; pip can read the list."""
    store = open_store(f"file://{tmp_path}/run")
    keep_facts(make_run(), store)
    lines = store.read("packages.txt").decode().splitlines()

    assert f"numpy=={importlib.metadata.version('numpy')}" in lines
    assert len(lines) > 20 and lines == sorted(lines, key=lambda line: line.partition("==")[0])


def test_the_command_leaves_the_state_of_its_directory(tmp_path):
    """Job files live in a repository of the user's own, which no worker sees; changes that are gone leave no diff."""
    folder = tmp_path / "project"
    folder.mkdir()
    job = folder / "job.yaml"
    job.write_text("steps: 1\n")
    for words in (["init", "-q"], ["add", "."], ["-c", "user.name=a", "-c", "user.email=a@b.c", "commit", "-qm", "a"]):
        subprocess.run(["git", *words], cwd=folder, check=True)
    store = open_store(f"file://{tmp_path}/run")

    job.write_text("steps: 2\n")
    keep_command(store, folder)
    assert json.loads(store.read("command.json"))["git"] == git_state(folder)
    assert b"+steps: 2" in store.read("command.patch")
    job.write_text("steps: 1\n")
    keep_command(store, folder)
    assert not store.exists("command.patch")
