"""Requests go past Ray Serve's books only where they may."""

import asyncio

import pytest

from recurra.serving import direct


@pytest.fixture
def way():
    """The layer between two applications that note what reaches them; restored afterwards."""
    seen = []

    def application(name):
        async def app(scope, receive, send):
            seen.append((name, scope["path"], scope.get("root_path", "")))

        return app

    (layer,) = direct.middlewares()
    way = layer.cls(application("ray"), *layer.args, **layer.kwargs)
    direct.adopt(application("ours"), "/lm")
    yield lambda **scope: (asyncio.run(way({"type": "http", **scope}, None, None)), seen[-1])[1]
    direct._Adopted.app = None


@pytest.mark.parametrize("path", ["/lm", "/lm/v1/models"])
def test_a_request_below_the_prefix_is_ours(way, path):
    """The prefix becomes the root path, as Ray would have it."""
    assert way(path=path) == ("ours", path, "/lm")
    assert way(path=f"/root{path}", root_path="/root") == ("ours", f"/root{path}", "/root/lm")


@pytest.mark.parametrize("path", ["/-/healthz", "/-/routes", "/other", "/lmx"])
def test_the_rest_is_rays(way, path):
    """HAProxy asks Ray for its replicas' health; other prefixes are other applications'."""
    assert way(path=path) == ("ray", path, "")


def test_without_an_application_everything_is_rays(way):
    """The same layer runs in Ray's own proxies."""
    direct._Adopted.app = None

    assert way(path="/lm/v1/models") == ("ray", "/lm/v1/models", "")
    assert way(type="websocket", path="/lm") == ("ray", "/lm", "")


@pytest.mark.parametrize(("status", "leaving"), [(503, True), (200, False)])
def test_the_health_check_tells_that_the_replica_is_to_leave(status, leaving):
    """Ray says so to HAProxy and to nobody else: streams hear of it seconds before anything is closed."""
    heard, sent = [], []

    async def ray(scope, receive, send):
        await send({"type": "http.response.start", "status": status})
        await send({"type": "http.response.body", "body": b""})

    async def send(message):
        sent.append(message["type"])

    direct.adopt(ray, "/lm", heard.append)
    try:
        asyncio.run(direct.ShortWay(ray)({"type": "http", "path": "/-/healthz"}, None, send))
    finally:
        direct.adopt(ray, "/lm")
        direct._Adopted.app = None

    assert heard == [leaving]
    assert sent == ["http.response.start", "http.response.body"]
