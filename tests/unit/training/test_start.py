import json
import subprocess

import pytest

from recurra.storage.url import open_store
from recurra.training.start import environment, git_state, keep_facts


@pytest.fixture
def repository(tmp_path):
    """A git repository with one commit."""
    folder = tmp_path / "repository"
    folder.mkdir()
    (folder / "file").write_text("one")

    def git(*words):
        identity = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
        subprocess.run(["git", *identity, *words], cwd=folder, check=True, capture_output=True)

    git("init", "-q")
    git("add", "file")
    git("commit", "-q", "-m", "first")
    return folder


def test_the_commit_is_known_and_whether_files_differ(repository):
    """A result that nobody can reproduce is worth little: the report says which source it came from."""
    clean = git_state(repository)
    (repository / "file").write_text("two")
    changed = git_state(repository)

    assert clean is not None and changed is not None
    assert len(clean["commit"]) == 40 and changed["commit"] == clean["commit"]
    assert (clean["dirty"], changed["dirty"]) == (False, True)


def test_an_installed_wheel_has_no_commit(tmp_path):
    """Workers run from a wheel: that is no reason to fail."""
    assert git_state(tmp_path) is None


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
