"""Streams that break off: the client goes on, and the text is what it would have been."""

import asyncio
import socket
import threading
import time

import httpx
import pytest
from tests.unit.serving.conftest import language_service
from tests.unit.serving.test_app import error_of, events_of

from recurra.errors import UnreachableError
from recurra.serving.calls import Resumption, complete
from recurra.serving.client import AsyncClient, Client

GREEDY = {"max_tokens": 40, "temperature": 0}


class Cutter:
    """A proxy that hangs up in the middle of an answer, as a replica does that is killed.

    Args:
        cuts: For each connection in turn, after how many bytes of the answer it ends; later ones are whole.
    """

    def __init__(self, url: str, cuts: list[int]) -> None:
        self._port = int(url.rpartition(":")[2])
        self._cuts = list(cuts)
        self.requests: list[bytes] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._relay, args=(client,), daemon=True).start()

    def _relay(self, client: socket.socket) -> None:
        with client, socket.create_connection(("127.0.0.1", self._port)) as server:
            request = whole_request(client)
            self.requests.append(request)
            server.sendall(request.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n", 1))
            left = self._cuts.pop(0) if b"stream" in request and self._cuts else 1 << 30
            while left > 0 and (data := server.recv(min(4096, left))):
                client.sendall(data)
                left -= len(data)


def whole_request(client: socket.socket) -> bytes:
    """Headers and body, which may come apart."""
    data = client.recv(1 << 16)
    while b"\r\n\r\n" not in data and (more := client.recv(1 << 16)):
        data += more
    head, _, body = data.partition(b"\r\n\r\n")
    lengths = [line.split(b":")[1] for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
    while lengths and len(body) < int(lengths[0]) and (more := client.recv(1 << 16)):
        body += more
        data += more
    return data


@pytest.fixture
def cut(serve, store, request):
    """A language model with sessions behind a proxy that cuts the first streams."""
    server = serve(language_service(store.child(f"cut-{request.node.name}")))
    proxies: list[Cutter] = []

    def build(*cuts: int) -> Cutter:
        proxies.append(Cutter(server.url, list(cuts)))
        return proxies[-1]

    build.server = server
    yield build
    for proxy in proxies:
        proxy.close()


@pytest.mark.parametrize("options", [GREEDY, {"max_tokens": 40, "temperature": 1.5}])
def test_a_sessions_stream_goes_on_after_what_has_come(cut, options):
    """Nothing that was read changes, sampled or not; the session has taken the step once."""
    with Client(cut(500, 900).url) as client:
        session = client.session()
        text = "".join(session.stream({"prompt": "def "}, **options))

    assert text == session.last["generated"]["text"]
    count = len(session.last["generated"]["tokens"])
    assert count == 40 or session.last["generated"]["finish_reason"] == "stop"
    assert session.number == 5 + count
    assert cut.server.client.get(f"/v1/sessions/{session.id}").json()["step"] == session.number


def test_a_resumed_session_is_in_the_state_of_an_unbroken_one(cut):
    """Law: broken anywhere, the text and everything after it are the same."""
    with Client(cut.server.url) as client:
        whole = client.session()
        wanted = "".join(whole.stream({"prompt": "x"}, **GREEDY)), whole.step({"text": "y"})["output"]["next"]
    for cuts in ((300,), (420, 440), (1200,), (2500,)):
        with Client(cut(*cuts).url) as client:
            session = client.session()
            text = "".join(session.stream({"prompt": "x"}, **GREEDY))
            following = session.step({"text": "y"})["output"]["next"]
        assert text == wanted[0]
        assert [n["token"] for n in following] == [n["token"] for n in wanted[1]]


def test_an_answer_that_was_lost_after_the_commit_is_read_again(cut):
    """The server had done it all: the repeat gets the stored answer, though it carries tokens that the first did not."""
    id = cut.server.post("/v1/sessions").json()["id"]
    body = {"step": 0, "input": {"prompt": "a"}, "generate": {"max_tokens": 6, "temperature": 0}}
    *parts, answer, _ = events_of(cut.server.client.post(f"/v1/sessions/{id}/stream", json=body))
    tokens = [token for part in parts for token in part["tokens"]]
    body["generate"]["resume"] = tokens[:3]
    compact = {"content-type": "application/json"}
    again = events_of(cut.server.client.post(f"/v1/sessions/{id}/stream", json=body, headers=compact))

    assert again == [answer, "[DONE]"]


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_a_completions_stream_goes_on_too(cut, kind):
    """It has no session: the same seed says the same, and what was read is left out."""
    proxy = cut(700, 1500)

    async def read() -> str:
        async with AsyncClient(proxy.url) as client:
            return "".join([piece async for piece in client.stream("lm", "def ", max_tokens=40, seed=7)])

    if kind == "async":
        text = asyncio.run(read())
    else:
        with Client(proxy.url) as client:
            text = "".join(client.stream("lm", "def ", max_tokens=40, seed=7))
    whole = cut.server.post("/v1/completions", model="lm", prompt="def ", max_tokens=40, seed=7).json()

    assert text == whole["choices"][0]["text"]
    assert len(proxy.requests) >= 2


def test_the_async_sessions_stream_goes_on_too(cut):
    """One law for both clients."""

    async def read() -> tuple[str, dict]:
        async with AsyncClient(cut(600).url) as client:
            session = await client.session()
            return "".join([piece async for piece in session.stream({"prompt": "q"}, **GREEDY)]), session.last

    text, last = asyncio.run(read())
    assert text == last["generated"]["text"] and last["step"] == 2 + 40


def test_a_stream_that_always_breaks_is_given_up(cut):
    """After its tries, with an error that says so."""
    with Client(cut(*[400] * 9).url, tries=3) as client, pytest.raises(UnreachableError, match="broke off"):
        list(client.session().stream({"prompt": "a"}, **GREEDY))


def test_a_repeat_that_says_something_else_is_no_continuation():
    """Better an error than a text that never was."""
    resumption = Resumption.of_completion(complete("lm", "a", {"stream": True}))
    resumption.take({"choices": [{"text": "one"}]})
    resumption.next_call()
    with pytest.raises(UnreachableError, match="something else"):
        resumption.take({"choices": [{"text": "two"}]})


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"resume": [999]}, "token_out_of_range"),
        ({"resume": [1] * 6}, "cannot_resume"),
        ({"resume": [1], "commit": False}, "cannot_resume"),
        ({"resume": [1], "logprobs": 1}, "cannot_resume"),
    ],
)
def test_a_resumption_that_cannot_be_is_refused(lm, change, code):
    """Before anything is generated."""
    id = lm.post("/v1/sessions").json()["id"]
    body = {"input": {"text": "a"}, "generate": {"max_tokens": 6, **change}}
    response = lm.post(f"/v1/sessions/{id}/stream", **body)

    assert (response.status_code, error_of(response)["code"]) == (422, code)


def test_a_leaving_replica_hands_its_streams_over(serve, store):
    """Drain: the stream ends at its next token with a typed event, and the other replica goes on after it."""
    shared = store.child("leaving")
    services = [language_service(shared, max_new_tokens=100_000, deadline_s=60.0) for _ in range(2)]
    one, other = (serve(service) for service in services)
    id = one.post("/v1/sessions").json()["id"]
    body = {"step": 0, "input": {"prompt": "a"}, "generate": {"max_tokens": 100_000, "temperature": 0}}
    with httpx.stream("POST", f"{one.url}/v1/sessions/{id}/stream", json=body, timeout=20) as response:
        lines = response.iter_lines()
        next(lines)
        one.service.leave()
        rest = list(lines)
    assert "event: error" in rest and '"code": "migrate"' in rest[-2]
    until = time.monotonic() + 60
    while not one.service.engine.idle and time.monotonic() < until:
        time.sleep(0.01)
    assert one.service.engine.idle
    body["generate"] = {**body["generate"], "max_tokens": 4, "resume": [1, 2, 3]}
    assert other.post(f"/v1/sessions/{id}/stream", **body).status_code == 200
    late = one.post("/v1/sessions", input={"prompt": "a"}).json()["id"]
    ask = {"generate": {"max_tokens": 50, "temperature": 0}, "input": {"text": "b"}}
    assert events_of(one.post(f"/v1/sessions/{late}/stream", **ask))[-1] == "[DONE]"
