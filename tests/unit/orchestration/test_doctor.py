"""The doctor: real checks of this machine, and what it says when one fails."""

from __future__ import annotations

from collections import namedtuple
from pathlib import Path

import pytest

from recurra.orchestration import doctor as room
from recurra.orchestration.doctor import Check, examine
from recurra.storage.local import LocalStore


@pytest.fixture(autouse=True)
def nothing_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RECURRA_HOME", str(tmp_path / "deep" / "home"))
    for name in ("RECURRA_ADDRESS", "RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        monkeypatch.delenv(name, raising=False)


def checks(url: str, address: str | None = None) -> dict[str, Check]:
    return {check.name: check for check in examine(address, url)}


def test_a_working_machine(local_url: str) -> None:
    """Every package of the platform is here, or this test could not run."""
    found = checks(local_url)
    assert {name for name, check in found.items() if check.level == "failed"} == set()
    assert "torch" in found["Packages"].found
    assert "conditional write" in found["Object store"].found
    assert (found["Ray"].level, "recurra up" in found["Ray"].remedy) == ("warning", True)


def test_every_check_that_is_not_ok_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """A red line without a remedy is an insult."""
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(room, "PACKAGES", ("no-such-package",))
    monkeypatch.setattr(room, "_memory_bytes", lambda: (1 << 30, 1 << 28))
    monkeypatch.setattr(room.shutil, "disk_usage", lambda path: usage(1, 1, 1))
    found = checks("file:///proc/nowhere", "127.0.0.1:1")
    bad = {name: check for name, check in found.items() if check.level != "ok"}
    assert set(bad) >= {"Packages", "Memory", "Disk", "Object store", "Ray"}
    assert all(check.remedy for check in bad.values())
    assert found["Ray"].level == "failed"


def test_a_store_that_ignores_conditions_is_found_out(local_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Datasets and aliases would lose writes on it, silently."""
    monkeypatch.setattr(LocalStore, "create", LocalStore.write)
    found = checks(local_url)["Object store"]
    assert found.level == "failed" and "If-None-Match" in found.found


def test_nothing_is_left_in_the_store(local_url: str) -> None:
    """The bucket is the user's."""
    checks(local_url)
    assert [path for path in Path(local_url.removeprefix("file://")).rglob("*") if path.is_file()] == []
