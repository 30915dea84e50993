"""What the clients send and how they read what comes back, without any network: one `Call` for each operation."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Generic, TypeVar

import httpx

from recurra.errors import RequestError, UnreachableError

T = TypeVar("T")
JsonObject = dict[str, Any]

RETRIED = frozenset({429, 503})
LONGEST_PAUSE_S = 30.0
DEFAULT_TOKENS = 16
LOST = frozenset({"migrate", "draining", "session_store_failed"})
"""Codes of errors at the end of a stream that another replica may go on from."""


@dataclass(frozen=True)
class Call(Generic[T]):
    """One request and the reader of its answer. Any may be sent again when no answer came.

    Steps carry their number, and a session that was made for an answer which nobody got ends by its time limit.
    """

    method: str
    path: str
    read: Callable[[httpx.Response], T]
    body: JsonObject | bytes | None = None

    def arguments(self) -> dict[str, Any]:
        """For httpx's `request` and `stream`."""
        found: dict[str, Any] = {"method": self.method, "url": self.path}
        if isinstance(self.body, bytes):
            found |= {"content": self.body, "headers": {"content-type": "application/octet-stream"}}
        elif self.body is not None:
            # Not `json=`: NaN would be sent as NaN, which is no JSON, and refused by the service only.
            found |= {"content": _json(self.body), "headers": {"content-type": "application/json"}}
        return found


def models() -> Call[list[JsonObject]]:
    return Call("GET", "/v1/models", lambda answer: list(answer.json()["data"]))


def predict(model: str, instances: Sequence[Any], options: Mapping[str, Any] | None) -> Call[list[Any]]:
    body = {"instances": list(instances), "options": dict(options or {})}
    return Call("POST", f"/v1/predict/{model}", lambda answer: list(answer.json()["predictions"]), body)


def complete(model: str, prompt: str | Sequence[int], options: Mapping[str, Any]) -> Call[JsonObject]:
    given = prompt if isinstance(prompt, str) else list(prompt)
    return Call("POST", "/v1/completions", _object, {"model": model, "prompt": given, **options})


def forecast(
    model: str, series: Sequence[Mapping[str, Any]], horizon: int, quantiles: Sequence[float] | None
) -> Call[list[JsonObject]]:
    options: JsonObject = {"horizon": horizon}
    if quantiles is not None:
        options["quantiles"] = list(quantiles)
    inputs = [{"name": str(index), **item} for index, item in enumerate(series)]
    body = {"model": model, "inputs": inputs, "options": options}
    return Call("POST", "/v1/timeseries/forecast", lambda answer: list(answer.json()["outputs"][0]["content"]), body)


def open_session(input: Any, id: str | None) -> Call[JsonObject]:
    if id is not None:
        return Call("GET", f"/v1/sessions/{id}", _object)
    return Call("POST", "/v1/sessions", _object, {} if input is None else {"input": input})


def import_session(snapshot: bytes) -> Call[JsonObject]:
    return Call("POST", "/v1/sessions", _object, snapshot)


def step(
    id: str, number: int, input: Any, options: Mapping[str, Any] | None, generate: Mapping[str, Any] | None
) -> Call[JsonObject]:
    body: JsonObject = {"step": number}
    if input is not None:
        body["input"] = input
    if options is not None:
        body["options"] = dict(options)
    if generate is not None:
        body["generate"] = dict(generate)
    return Call("POST", f"/v1/sessions/{id}/step", _object, body)


def stream(step_call: Call[JsonObject]) -> Call[JsonObject]:
    """The same step as server-sent events."""
    return replace(step_call, path=step_call.path.removesuffix("step") + "stream")


def fork(id: str) -> Call[JsonObject]:
    return Call("POST", f"/v1/sessions/{id}/fork", _object)


def snapshot(id: str) -> Call[bytes]:
    return Call("GET", f"/v1/sessions/{id}/state", lambda answer: answer.content)


def delete(id: str) -> Call[None]:
    return Call("DELETE", f"/v1/sessions/{id}", lambda _: None)


class EventReader:
    """Server-sent events, line by line."""

    def __init__(self) -> None:
        self.done = False
        """Whether the end mark has come."""

    def feed(self, line: str) -> JsonObject | None:
        """The event that this line completes.

        Raises:
            BrokenStreamError: The stream ended with an error that another replica may not have.
            RequestError: The stream ended with an error.
        """
        if not line.startswith("data: "):
            return None
        data = line.removeprefix("data: ")
        if data == "[DONE]":
            self.done = True
            return None
        event: JsonObject = json.loads(data)
        if "error" in event:
            error = _error(event["error"], 500)
            raise BrokenStreamError(str(error)) if error.code in LOST else error
        return event

    def finish(self) -> None:
        """See that nothing was cut off.

        Raises:
            BrokenStreamError: The connection ended before the end mark.
        """
        if not self.done:
            raise BrokenStreamError("The stream broke off before its end.")


class BrokenStreamError(UnreachableError):
    """A stream ended before its end; it may go on elsewhere."""


@dataclass
class Resumption:
    """What a stream of generated text has given so far, and the request that goes on after it.

    A stream of a session sends the tokens that have come back with the request, and nothing of them changes. One of
    `/v1/completions` asks again with the same seed and leaves out what has been read already.
    """

    call: Call[JsonObject]
    tokens: list[int] = field(default_factory=list)
    text: str = ""
    final: JsonObject | None = None
    """The session's own answer, which ends its stream."""
    _skip: str = ""
    """Text that is said again and was read before."""
    _muted: bool = False
    """Whether all tokens have come, and only the session's answer is missing."""

    @classmethod
    def of_completion(cls, call: Call[JsonObject]) -> Resumption:
        """With a seed, so that a repeat says the same."""
        assert isinstance(call.body, dict)
        return cls(replace(call, body={"seed": random.getrandbits(62), **call.body}))

    def next_call(self) -> Call[JsonObject]:
        """The request for what is still to come."""
        assert isinstance(self.call.body, dict)
        generate = self.call.body.get("generate")
        self._skip, self._muted = "", False
        if generate is None or not generate.get("commit", True) or generate.get("logprobs") is not None:
            self._skip, self.tokens = self.text, []
            return self.call
        given = self.tokens[: generate.get("max_tokens", DEFAULT_TOKENS) - 1]
        self._muted = len(given) < len(self.tokens)
        return (
            replace(self.call, body={**self.call.body, "generate": {**generate, "resume": given}})
            if given
            else self.call
        )

    def take(self, event: JsonObject) -> str:
        """The new text of an event.

        Raises:
            UnreachableError: The repeat says something else than what was read before the stream broke off.
        """
        if "step" in event:
            self.final = event
            whole = (event.get("generated") or {}).get("text", "")
            return self._given(whole[len(self.text) :] if whole.startswith(self.text) else "")
        if self._muted:
            return ""
        if "choices" in event:
            piece = "".join(choice["text"] for choice in event["choices"])
        else:
            piece = event["text"]
            self.tokens = [*self.tokens, *event["tokens"]]
        known = min(len(self._skip), len(piece))
        if piece[:known] != self._skip[:known]:
            raise UnreachableError(
                "The stream broke off, and asked again the model says something else. Send the request again."
            )
        self._skip = self._skip[known:]
        return self._given(piece[known:])

    def _given(self, text: str) -> str:
        self.text += text
        return text


def pause_s(response: httpx.Response | None, attempt: int, tries: int) -> float | None:
    """Seconds to wait before the next try: `Retry-After` and up to as long again at random, so that those who were refused
    together do not come back together; None = give up."""
    if attempt + 1 >= tries or (response is not None and not _lost(response)):
        return None
    asked = response.headers.get("retry-after", "") if response is not None else ""
    least_s = float(asked) if asked.isdigit() else 0.0
    return min(LONGEST_PAUSE_S, least_s + random.uniform(0, max(least_s, 0.1 * 2**attempt)))


def _lost(response: httpx.Response) -> bool:
    """Whether another try may do better: the service says so, or a proxy has lost the replica behind it."""
    ours = response.headers.get("content-type", "").startswith("application/json")
    return response.status_code in RETRIED or (response.status_code >= 500 and not ours)


def error_of(response: httpx.Response) -> RequestError:
    """The error that the service, or whatever stands before it, answered with."""
    try:
        return _error(response.json()["error"], response.status_code)
    except (ValueError, KeyError, TypeError):
        text = response.text.strip()[:200]
        return RequestError(
            f"{response.request.url} answered {response.status_code}: {text}", status=response.status_code, code="http"
        )


def unreachable(url: httpx.URL, exc: Exception) -> UnreachableError:
    """No answer at all."""
    return UnreachableError(
        f"{url} does not answer ({exc or type(exc).__name__}). Check the address, and that it runs."
    )


def headers(api_key: str | None) -> dict[str, str]:
    return {"authorization": f"Bearer {api_key}"} if api_key else {}


def _object(answer: httpx.Response) -> JsonObject:
    return dict(answer.json())


def _json(body: JsonObject) -> bytes:
    try:
        return json.dumps(body, allow_nan=False).encode()
    except (TypeError, ValueError) as exc:
        raise RequestError(f"The request is no JSON: {exc}. Send finite numbers, strings, lists and objects.") from exc


def _error(body: Mapping[str, Any], status: int) -> RequestError:
    return RequestError(str(body["message"]), status=status, code=str(body["code"]), param=body.get("param"))
