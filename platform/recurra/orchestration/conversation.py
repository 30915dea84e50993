"""Talking to a deployed language model over plain HTTP, as any client would."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families

from recurra.errors import ClusterError
from recurra.orchestration.deploy import is_this_machine

COMPLETE = "import os\n\n\ndef read_lines(path):\n    with open("
STREAM = "class Stack:\n    def __init__(self):\n        self."
TYPED = ("for name in sorted(", "os.listdir(path)):\n    if name.", 'endswith(".py"):\n        ')


@dataclass(frozen=True)
class Traffic:
    """What `/metrics` says of the requests to one endpoint."""

    endpoint: str
    requests: int
    mean_ms: float


class Conversation:
    """A client of one application.

    Args:
        url: Of the application, without a trailing slash.
        key: Bearer key; None = the service is open.
        model: Name of the model.
    """

    def __init__(self, url: str, key: str | None, model: str) -> None:
        self._model = model
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._client = httpx.Client(base_url=url, headers=headers, timeout=60.0, trust_env=not is_this_machine(url))
        self.requests = 0
        """How many were answered."""

    def complete(self, say: Callable[[str], None]) -> None:
        """One completion."""
        begun_s = time.monotonic()
        body = {"model": self._model, "prompt": COMPLETE, "max_tokens": 48, "temperature": 0.3, "seed": 1}
        answer = self._post("/v1/completions", body)
        say(f"completion in {(time.monotonic() - begun_s) * 1000:.0f} ms (what was sent, then > what came back):")
        say(_quoted(COMPLETE, answer["choices"][0]["text"]))

    def stream(self, say: Callable[[str], None]) -> None:
        """One completion whose text arrives as it is made."""
        body = {"model": self._model, "prompt": STREAM, "max_tokens": 48, "temperature": 0.3, "seed": 2, "stream": True}
        begun_s = time.monotonic()
        first_s = None
        pieces: list[str] = []
        with self._client.stream("POST", "/v1/completions", json=body) as response:
            if response.is_error:
                response.read()
            _check(response)
            for line in response.iter_lines():
                if line.startswith("data: ") and line != "data: [DONE]":
                    first_s = first_s or time.monotonic()
                    pieces += [choice["text"] for choice in json.loads(line[6:])["choices"]]
        self.requests += 1
        if first_s is None:
            raise ClusterError("The streamed completion ended without an event. Look at the replica's log.")
        took_s = time.monotonic() - begun_s
        say(
            f"streamed in {len(pieces)} events, the first after {(first_s - begun_s) * 1000:.0f} ms of {took_s * 1000:.0f} ms:"
        )
        say(_quoted(STREAM, "".join(pieces)))

    def session(self, say: Callable[[str], None]) -> None:
        """Somebody types; after each pause the model suggests how the line goes on, and the suggestion is not kept."""
        session = self._post("/v1/sessions", {"input": {"text": "import os\n\n"}})
        say(f"session {session['id']} at step {session['step']}; typing, with a suggestion after each pause:")
        suggest = {"max_tokens": 24, "temperature": 0, "stop": ["\n"], "commit": False}
        for text in TYPED:
            body = {"step": session["step"], "input": {"text": text}, "generate": suggest}
            session = self._post(f"/v1/sessions/{session['id']}/step", body)
            shown = session["generated"]["text"]
            say(f"  step {session['step']:>3}: {text!r} > {shown!r}")
        _check(self._client.delete(f"/v1/sessions/{session['id']}"))
        self.requests += 1

    def traffic(self) -> list[Traffic]:
        """What the fleet's `/metrics` counts for this model."""
        response = self._client.get("/metrics")
        _check(response)
        return read_traffic(response.text)

    def _post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        response = self._client.post(path, json=body)
        _check(response)
        self.requests += 1
        return dict(response.json())


def read_traffic(exposition: str) -> list[Traffic]:
    """Requests and mean latency of each endpoint, from Prometheus' text format."""
    counts: dict[str, float] = {}
    seconds: dict[str, float] = {}
    for family in text_string_to_metric_families(exposition):
        for sample in family.samples:
            endpoint = sample.labels.get("endpoint", "")
            if sample.name == "recurra_requests_total":
                counts[endpoint] = counts.get(endpoint, 0.0) + sample.value
            elif sample.name == "recurra_e2e_request_latency_seconds_sum":
                seconds[endpoint] = seconds.get(endpoint, 0.0) + sample.value
    return [
        Traffic(endpoint, int(count), 1000 * seconds.get(endpoint, 0.0) / count)
        for endpoint, count in sorted(counts.items())
        if count
    ]


def _check(response: httpx.Response) -> None:
    if response.is_error:
        raise ClusterError(f"{response.request.url} answered {response.status_code}: {response.text.strip()[:500]}")


def _quoted(prompt: str, answer: str) -> str:
    return "\n".join(f"    {line}" for line in f"{prompt}>{answer}".splitlines())
