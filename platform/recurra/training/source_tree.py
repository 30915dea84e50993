"""Which source a run came from: the commit of a git repository, and what differs from it."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

LARGEST_DIFF = 1 << 20
"""Bytes of a diff that are kept; a longer one is cut off, with a last line that says so."""


def git_state(directory: Path) -> dict[str, Any] | None:
    """`commit`, and `dirty` when tracked files differ from it; None outside a repository or without git."""
    try:
        commit = _git(directory, "rev-parse", "HEAD").decode().strip()
        return {"commit": commit, "dirty": bool(_git(directory, "status", "--porcelain", "--untracked-files=no"))}
    except (OSError, subprocess.SubprocessError):
        return None


def git_diff(directory: Path) -> bytes:
    """What `git apply` makes the tracked files from, on top of the commit; empty when there is nothing to say."""
    try:
        # Nothing that a user's settings may bring in: a pager, colours, an external tool.
        diff = _git(directory, "-c", "core.quotePath=false", "diff", "--no-ext-diff", "--no-color", "--binary", "HEAD")
    except (OSError, subprocess.SubprocessError):
        return b""
    if len(diff) <= LARGEST_DIFF:
        return diff
    return diff[:LARGEST_DIFF] + f"\n# cut off here: the diff has {len(diff)} bytes\n".encode()


def _git(directory: Path, *words: str) -> bytes:
    command = ["git", "-C", str(directory), *words]
    return subprocess.run(command, capture_output=True, check=True, timeout=10).stdout
