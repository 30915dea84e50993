"""A run knows the source that it came from, changes that were not committed included."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from recurra.training import source_tree
from recurra.training.source_tree import git_diff, git_state


def git(folder: Path, *words: str) -> None:
    identity = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    subprocess.run(["git", *identity, *words], cwd=folder, check=True, capture_output=True)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A git repository with one commit."""
    folder = tmp_path / "repository"
    folder.mkdir()
    (folder / "file").write_text("one\n")
    git(folder, "init", "-q")
    git(folder, "add", "file")
    git(folder, "commit", "-q", "-m", "first")
    return folder


def test_the_commit_is_known_and_whether_files_differ(repository: Path) -> None:
    """A result that nobody can reproduce is worth little: the report says which source it came from."""
    clean = git_state(repository)
    (repository / "file").write_text("two\n")
    changed = git_state(repository)

    assert clean is not None and changed is not None
    assert len(clean["commit"]) == 40 and changed["commit"] == clean["commit"]
    assert (clean["dirty"], changed["dirty"]) == (False, True)


def test_the_diff_gives_the_changes_back(repository: Path) -> None:
    """Commit and diff together are the source: applied to a fresh checkout, the file is as it was."""
    assert git_diff(repository) == b""
    (repository / "file").write_text("two\n")
    diff = git_diff(repository)
    git(repository, "checkout", "-q", "file")
    assert (repository / "file").read_text() == "one\n"
    subprocess.run(["git", "apply"], cwd=repository, input=diff, check=True)
    assert (repository / "file").read_text() == "two\n"


def test_a_huge_diff_is_cut_off_and_says_so(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A data file that somebody tracks must not fill the store at every start."""
    monkeypatch.setattr(source_tree, "LARGEST_DIFF", 200)
    (repository / "file").write_text("a line of text\n" * 1000)
    diff = git_diff(repository)
    assert len(diff) < 300 and diff.endswith(b"bytes\n") and b"# cut off here: the diff has 1" in diff


def test_an_installed_wheel_has_no_commit(tmp_path: Path) -> None:
    """Workers run from a wheel: that is no reason to fail."""
    assert git_state(tmp_path) is None and git_diff(tmp_path) == b""
    assert git_state(tmp_path / "nothing") is None
