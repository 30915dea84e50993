"""What Ray's processes get."""

import resource

import pytest

from recurra.config import env


@pytest.mark.parametrize(
    ("files", "connections"),
    [(resource.RLIM_INFINITY, 7168), (1 << 20, 7168), (20000, 7168), (10267, 4090), (1024, 393)],
)
def test_haproxy_gets_no_more_connections_than_it_may_open_files_for(monkeypatch, files, connections):
    """It asks for 2.5 files and some for each, and does not start when there are fewer."""
    monkeypatch.setattr(resource, "getrlimit", lambda which: (1024, files))

    assert env._haproxy_connections() == connections
    assert files == resource.RLIM_INFINITY or connections * 2.5 + 30 <= files
