"""Applications on Ray Serve, through the REST interface that KubeRay uses, too: what is tested here is what runs there."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import httpx

from recurra.config.env import ray_auth_token
from recurra.errors import ClusterError, ConfigError
from recurra.orchestration.release import unless_the_same
from recurra.serving.run import ServeRun

POLL_S = 0.5
TRIES = 5
PAUSE_S = 2.0
_PATH = "/api/serve/applications/"
_FAILED = ("DEPLOY_FAILED", "UNHEALTHY")


@dataclass(frozen=True)
class Deployed:
    """An application that answers."""

    name: str
    url: str
    """Its address, without a trailing slash."""
    replicas: int


@dataclass(frozen=True)
class ApplicationStatus:
    """One application as the cluster sees it."""

    name: str
    status: str
    """RUNNING, DEPLOYING, DEPLOY_FAILED, UNHEALTHY, DELETING or NOT_STARTED."""
    message: str
    route_prefix: str
    model: str
    replicas: dict[str, int]
    """Replica state -> how many."""
    deployed_s: float


def serve_document(*runs: ServeRun, http_port: int = 8000) -> dict[str, Any]:
    """Ray Serve's configuration file for these applications: the body of the REST call and KubeRay's serveConfigV2.

    Host 0.0.0.0 is what HAProxy listens on whatever it is told; the service asks for its API key instead.
    """
    return {
        "proxy_location": "EveryNode",
        "http_options": {"host": "0.0.0.0", "port": http_port},
        "applications": [run.application() for run in runs],
    }


class ServeApi:
    """Ray Serve of one cluster.

    Args:
        dashboard_url: `http://host:8265`.
        transport: Stands in for the network, in tests of answers that a healthy cluster does not give.
    """

    def __init__(self, dashboard_url: str, transport: httpx.BaseTransport | None = None) -> None:
        self._url = dashboard_url.rstrip("/")
        token = ray_auth_token()
        self._client = httpx.Client(
            base_url=self._url,
            headers={"Authorization": f"Bearer {token}"} if token else {},
            timeout=60.0,
            transport=transport,
            trust_env=not is_this_machine(self._url),
        )

    def deploy(self, run: ServeRun, *, http_port: int, timeout_s: float, progress: Callable[[str], None]) -> Deployed:
        """Add or update one application, leaving the others as they are, and wait until it answers.

        Raises:
            ClusterError: It failed or was not ready in time; with what its replicas said.
            ConfigError: Another application has its route.
        """
        details = self._details()
        configs = self._configs(details)
        run = unless_the_same(run, (configs.get(run.name) or {}).get("args"))
        others = [app for name, app in configs.items() if name != run.name]
        for other in others:
            if other.get("route_prefix") == run.serve.route_prefix:
                raise ConfigError(
                    f"serve.route_prefix is {run.serve.route_prefix}, where application '{other['name']}' answers already. "
                    f"Set serve.route_prefix to /{run.name}, or run 'recurra undeploy {other['name']}' first."
                )
        document = serve_document(run, http_port=http_port)
        document["applications"] += others
        self._call("PUT", document)
        return self._wait(run, timeout_s, progress)

    def undeploy(self, name: str, *, timeout_s: float = 120.0) -> None:
        """Remove one application and wait until its replicas are gone.

        Raises:
            ClusterError: There is no such application, or it would not go.
        """
        details = self._details()
        configs = self._configs(details)
        if name not in details.get("applications", {}):
            known = ", ".join(sorted(details.get("applications", {}))) or "none"
            raise ClusterError(f"No application '{name}' is deployed. Deployed: {known}.")
        document = {**serve_document(), "applications": [app for other, app in configs.items() if other != name]}
        document["http_options"] = details.get("http_options") or document["http_options"]
        if document["applications"]:
            self._call("PUT", document)
        else:
            self._call("DELETE")
        deadline_s = time.monotonic() + timeout_s
        while name in self._details().get("applications", {}):
            if time.monotonic() > deadline_s:
                raise ClusterError(f"'{name}' still has replicas after {timeout_s:.0f} s. See 'recurra serve status'.")
            time.sleep(POLL_S)

    def statuses(self) -> list[ApplicationStatus]:
        """All applications, by name."""
        return [_status(name, app) for name, app in sorted(self._details().get("applications", {}).items())]

    def ingress_url(self) -> str:
        """Where applications answer, as seen from this machine."""
        details = self._details()
        port = (details.get("http_options") or {}).get("port", 8000)
        return f"{urlsplit(self._url).scheme}://{urlsplit(self._url).hostname}:{port}"

    def _wait(self, run: ServeRun, timeout_s: float, progress: Callable[[str], None]) -> Deployed:
        start_s = said_s = time.monotonic()
        url = self.ingress_url() + run.serve.route_prefix.rstrip("/")
        while True:
            now_s = time.monotonic()
            app = self._details().get("applications", {}).get(run.name)
            status = _status(run.name, app) if app else None
            if status and status.status in _FAILED:
                raise ClusterError(f"'{run.name}' did not start:\n{_cause(app or {})}")
            # Also of a service that may go to zero: it counts as running before the proxies know its route.
            if status and status.status == "RUNNING" and _answers(url):
                return Deployed(run.name, url, status.replicas.get("RUNNING", 0))
            if now_s - start_s > timeout_s:
                raise ClusterError(f"'{run.name}' was not ready after {timeout_s:.0f} s.\n{_cause(app or {})}")
            if now_s - said_s > 5:
                said_s = now_s
                progress(f"{run.name}: {_summary(status)}")
            time.sleep(POLL_S)

    def _configs(self, details: dict[str, Any]) -> dict[str, dict[str, Any]]:
        apps = details.get("applications", {})
        return {name: app["deployed_app_config"] for name, app in apps.items() if app.get("deployed_app_config")}

    def _details(self) -> dict[str, Any]:
        return dict(self._call("GET").json())

    def _call(self, method: str, document: dict[str, Any] | None = None) -> httpx.Response:
        try:
            response = self._patiently(method, document)
        except httpx.HTTPError as exc:
            raise ClusterError(
                f"The Ray dashboard {self._url} does not answer ({exc}). Check --address; 'recurra doctor' shows more."
            ) from exc
        if response.status_code in (401, 403):
            raise ClusterError(
                f"The Ray dashboard {self._url} wants a token. Set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN."
            )
        if response.is_error:
            raise ClusterError(f"Ray Serve refused ({response.status_code}): {response.text.strip()[-2000:]}")
        return response

    def _patiently(self, method: str, document: dict[str, Any] | None) -> httpx.Response:
        """Ask again after a time-out, and a PUT after a server's error, as KubeRay does.

        The first call starts Ray's Serve module, which a busy machine takes a while for; and HAProxy cannot listen while
        the one of a Serve that was just shut down still does.
        """
        for _ in range(TRIES - 1):
            try:
                response = self._client.request(method, _PATH, json=document)
            except httpx.ReadTimeout:
                continue
            if method != "PUT" or response.status_code < 500:
                return response
            time.sleep(PAUSE_S)
        return self._client.request(method, _PATH, json=document)


def is_this_machine(url: str) -> bool:
    """Whether proxies of the environment must not be asked for it."""
    return urlsplit(url).hostname in ("127.0.0.1", "localhost", "::1")


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health/ready", timeout=5.0, trust_env=not is_this_machine(url)).is_success
    except httpx.HTTPError:
        return False


def _status(name: str, app: dict[str, Any]) -> ApplicationStatus:
    replicas: dict[str, int] = {}
    for deployment in app.get("deployments", {}).values():
        for replica in deployment.get("replicas", []):
            replicas[replica["state"]] = replicas.get(replica["state"], 0) + 1
    config = app.get("deployed_app_config") or {}
    return ApplicationStatus(
        name=name,
        status=app["status"],
        message=app.get("message", "").strip(),
        route_prefix=app.get("route_prefix") or config.get("route_prefix") or "-",
        model=(config.get("args") or {}).get("model", "-"),
        replicas=replicas,
        deployed_s=app.get("last_deployed_time_s", 0.0),
    )


def _summary(status: ApplicationStatus | None) -> str:
    if status is None:
        return "waiting for Ray Serve"
    replicas = ", ".join(f"{count} {state.lower()}" for state, count in sorted(status.replicas.items()))
    return f"{status.status.lower()}, replicas: {replicas or 'none yet'}"


def _cause(app: dict[str, Any]) -> str:
    """The last lines of what went wrong: the end of a traceback says it, its start does not."""
    messages = [app.get("message", "")]
    messages += [deployment.get("message", "") for deployment in app.get("deployments", {}).values()]
    lines = [line for message in messages for line in message.strip().splitlines() if line.strip()]
    return "\n".join(lines[-12:]) or "Ray gave no reason; see the dashboard's Serve page."
