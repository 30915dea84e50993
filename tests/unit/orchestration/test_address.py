"""Which cluster a command means."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from recurra.errors import ClusterError
from recurra.orchestration.address import ClusterAddress, find_cluster, need_cluster


@pytest.fixture(autouse=True)
def nothing_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RECURRA_HOME", str(tmp_path))
    for name in ("RECURRA_ADDRESS", "RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        monkeypatch.delenv(name, raising=False)


def test_the_option_comes_before_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was typed last is meant."""
    assert find_cluster(None) is None
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://c:8265")
    assert find_cluster(None) == ClusterAddress(None, "http://c:8265")
    monkeypatch.setenv("RAY_ADDRESS", "b:6379")
    assert find_cluster(None) == ClusterAddress("b:6379", "http://c:8265")
    monkeypatch.setenv("RECURRA_ADDRESS", "a:6379")
    assert find_cluster(None) == ClusterAddress("a:6379", "http://c:8265")
    assert find_cluster("d:6379") == ClusterAddress("d:6379", None)
    assert find_cluster("http://d:8265/") == ClusterAddress(None, "http://d:8265")


def test_without_any_cluster_the_way_to_one_is_shown() -> None:
    """The first thing that a new user meets."""
    with pytest.raises(ClusterError, match="recurra up"):
        need_cluster(None)


@pytest.mark.parametrize("address", ["auto", "ray://head:10001", "head", "head:port"])
def test_an_address_of_another_kind_is_explained(address: str) -> None:
    """Ray has several, and only one serves a driver."""
    with pytest.raises(ClusterError, match="host:port"):
        ClusterAddress(address, None).driver_address()


def test_a_dashboard_takes_no_driver() -> None:
    """The remedy is another command."""
    with pytest.raises(ClusterError, match="recurra submit"):
        ClusterAddress(None, "http://head:8265").driver_address()


def test_a_listening_address_is_used_and_a_dead_one_refused() -> None:
    """Ray would try for minutes, with warnings of C++ on the screen."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        address = f"127.0.0.1:{server.getsockname()[1]}"
        assert ClusterAddress(address, None).driver_address() == address
    with pytest.raises(ClusterError, match="Nothing answers"):
        ClusterAddress(address, None).driver_address()
