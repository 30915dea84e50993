"""Deployment through Serve's REST interface: answers that a healthy cluster does not give come from a small stand-in
for the dashboard; tests/e2e deploys for real."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from recurra.errors import ClusterError, ConfigError
from recurra.orchestration import deploy as room
from recurra.orchestration.deploy import ServeApi, serve_document
from recurra.serving.config import ServeConfig
from recurra.serving.run import ServeRun


def run(name: str, route: str = "/", replicas: Any = 1) -> ServeRun:
    config = ServeConfig(route_prefix=route, replicas=replicas)
    return ServeRun(name=name, model=f"{name}@production", registry="file:///registry", serve=config)


class Dashboard:
    """Keeps the document that was put; `status` decides what becomes of applications."""

    def __init__(self, *deployed: ServeRun) -> None:
        self.apps = {one.name: one.application() for one in deployed}
        self.status: Callable[[], str] = lambda: "RUNNING"
        self.message = ""
        self.documents: list[dict[str, Any]] = []
        self.answer: httpx.Response | None = None

    def __call__(self, request: httpx.Request) -> httpx.Response:
        if self.answer is not None:
            return self.answer
        if request.method == "PUT":
            self.documents.append(json.loads(request.content))
            self.apps = {app["name"]: app for app in self.documents[-1]["applications"]}
        if request.method == "DELETE":
            self.apps = {}
        applications = {
            name: {
                "status": self.status(),
                "message": self.message,
                "route_prefix": app["route_prefix"],
                "deployed_app_config": app,
                "deployments": {"replica": {"replicas": [{"state": "RUNNING"}, {"state": "STARTING"}]}},
                "last_deployed_time_s": 1.0,
            }
            for name, app in self.apps.items()
        }
        return httpx.Response(200, json={"applications": applications, "http_options": {"port": 8123}})

    @property
    def api(self) -> ServeApi:
        return ServeApi("http://127.0.0.1:8265", httpx.MockTransport(self))


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No waiting between two looks, and nobody listens at the ingress."""
    monkeypatch.setattr(room, "POLL_S", 0.0)
    monkeypatch.setattr(room, "_answers", lambda url: True)


def silent(_: str) -> None:
    pass


def test_the_document_is_what_ray_serve_takes() -> None:
    """KubeRay and the dashboard validate it with this schema; a key they do not know fails on the cluster."""
    from ray.serve.schema import ServeDeploySchema

    document = serve_document(run("a", "/a"), run("b", "/b"), http_port=8001)
    parsed = ServeDeploySchema.model_validate(document)
    assert [app.import_path for app in parsed.applications] == ["recurra.serving.deployment:build_app"] * 2
    assert parsed.applications[0].args["model"] == "a@production"
    assert parsed.http_options.port == 8001


def test_deploying_leaves_other_applications_alone() -> None:
    """The interface takes the whole set: whoever forgets the others undeploys them."""
    dashboard = Dashboard(run("old", "/old"))
    done = dashboard.api.deploy(run("new", "/new"), http_port=8000, timeout_s=5, progress=silent)
    assert (done.name, done.url, done.replicas) == ("new", "http://127.0.0.1:8123/new", 1)
    assert sorted(dashboard.apps) == ["new", "old"]


def test_deploying_again_updates() -> None:
    """A promoted alias is taken up this way."""
    dashboard = Dashboard(run("a"))
    dashboard.api.deploy(run("a", replicas=2), http_port=8000, timeout_s=5, progress=silent)
    (application,) = dashboard.documents[-1]["applications"]
    assert application["args"]["serve"]["replicas"] == 2


def test_two_applications_on_one_route_are_refused_before_anything_changes() -> None:
    """Ray would take the later one and leave the first without a route."""
    dashboard = Dashboard(run("first"))
    with pytest.raises(ConfigError, match="serve.route_prefix to /second"):
        dashboard.api.deploy(run("second"), http_port=8000, timeout_s=5, progress=silent)
    assert dashboard.documents == []


def test_a_failed_deployment_shows_the_end_of_what_the_replica_said() -> None:
    """Ray's message is a traceback; only its last line names the cause."""
    dashboard = Dashboard()
    dashboard.status = lambda: "DEPLOY_FAILED"
    dashboard.message = "Traceback:\n" + "  frame\n" * 40 + "NotFoundError: There is no model 'a'."
    with pytest.raises(ClusterError, match="There is no model 'a'") as caught:
        dashboard.api.deploy(run("a"), http_port=8000, timeout_s=5, progress=silent)
    assert str(caught.value).count("\n") < 15


def test_waiting_ends() -> None:
    """Never a hang."""
    dashboard = Dashboard()
    dashboard.status = lambda: "DEPLOYING"
    with pytest.raises(ClusterError, match="not ready after 0 s"):
        dashboard.api.deploy(run("a"), http_port=8000, timeout_s=0.05, progress=silent)


def test_running_is_not_enough_until_the_ingress_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """HAProxy learns of a replica a little later than the controller."""
    answers = iter([False, False, True])
    monkeypatch.setattr(room, "_answers", lambda url: next(answers))
    Dashboard().api.deploy(run("a"), http_port=8000, timeout_s=5, progress=silent)
    assert next(answers, None) is None


def test_what_may_go_to_zero_answers_once_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray says RUNNING before its proxies know the route: the first requests would get a 404."""
    answers = iter([False, False, True])
    monkeypatch.setattr(room, "_answers", lambda url: next(answers))
    Dashboard().api.deploy(run("a", replicas=(0, 2)), http_port=8000, timeout_s=5, progress=silent)
    assert next(answers, None) is None


def test_undeploy_takes_one_and_the_last_shuts_serve_down() -> None:
    """What is not named stays."""
    dashboard = Dashboard(run("a", "/a"), run("b", "/b"))
    dashboard.api.undeploy("a")
    assert sorted(dashboard.apps) == ["b"]
    dashboard.api.undeploy("b")
    assert dashboard.apps == {}
    with pytest.raises(ClusterError, match="Deployed: none"):
        dashboard.api.undeploy("b")


def test_statuses_count_replicas_by_state() -> None:
    """One number hides that a replica keeps failing."""
    (status,) = Dashboard(run("a", "/a")).api.statuses()
    assert (status.name, status.model, status.route_prefix) == ("a", "a@production", "/a")
    assert status.replicas == {"RUNNING": 1, "STARTING": 1}


@pytest.mark.parametrize(("code", "said"), [(401, "RAY_AUTH_TOKEN"), (500, "boom")])
def test_a_refusing_dashboard_is_named(code: int, said: str) -> None:
    """Token mode is Ray's default from 2.61 on."""
    dashboard = Dashboard()
    dashboard.answer = httpx.Response(code, text="boom")
    with pytest.raises(ClusterError, match=said):
        dashboard.api.statuses()


def test_a_slow_dashboard_is_asked_again_and_a_silent_one_given_up() -> None:
    """The first call of a cluster's life takes long; every call may be repeated."""
    dashboard = Dashboard(run("a"))
    answers: list[Exception | None] = [httpx.ReadTimeout("slow"), None]

    def slow(request: httpx.Request) -> httpx.Response:
        if failure := answers.pop(0) if answers else httpx.ReadTimeout("silent"):
            raise failure
        return dashboard(request)

    api = ServeApi("http://127.0.0.1:8265", httpx.MockTransport(slow))
    assert [one.name for one in api.statuses()] == ["a"]
    with pytest.raises(ClusterError, match="silent"):
        api.statuses()


def test_a_put_that_comes_too_early_is_put_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """HAProxy cannot listen while the one of a Serve that was just shut down still does."""
    monkeypatch.setattr(room, "PAUSE_S", 0.01)
    dashboard = Dashboard()
    refusals = [httpx.Response(500, text="Some protocols failed to start their listeners")] * 2

    def early(request: httpx.Request) -> httpx.Response:
        if request.method == "PUT" and refusals:
            return refusals.pop()
        return dashboard(request)

    api = ServeApi("http://127.0.0.1:8265", httpx.MockTransport(early))
    api.deploy(run("a"), http_port=8000, timeout_s=5, progress=print)
    assert sorted(dashboard.apps) == ["a"]


def test_a_dead_dashboard_is_an_error_at_once() -> None:
    """Not a stack trace of httpx."""
    with pytest.raises(ClusterError, match="does not answer"):
        ServeApi("http://127.0.0.1:1").statuses()
