"""The client against a real server: what it returns, what it raises, what it sends again."""

import asyncio
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from tests.unit.serving.conftest import classifier_service

from recurra.errors import RequestError, UnreachableError
from recurra.serving.client import AsyncClient, Client


@pytest.fixture
def client(lm):
    with Client(lm.url, tries=2) as client:
        yield client


def test_it_completes_and_streams_the_same_text(client):
    """Both ways of asking give one answer."""
    options = {"max_tokens": 12, "temperature": 0}
    answer = client.complete("lm", "def ", **options)

    assert "".join(client.stream("lm", "def ", **options)) == answer["choices"][0]["text"]
    assert client.models()[0]["id"] == "lm"
    assert client.predict("lm", [{"prompt": "a"}, {"prompt": "b"}], {"top": 2})[1]["next"][0]["text"]


def test_a_session_counts_its_steps(client):
    """The number goes with each request, so a repeat is no second step."""
    session = client.session()
    session.step({"text": "ab"})
    branch = session.fork()
    text = "".join(session.stream({"text": "c"}, max_tokens=5, temperature=0))
    again = client.session(id=session.id)
    copy = client.session_from(branch.snapshot())

    assert (session.number, branch.number, again.number, copy.number) == (9, 3, 9, 3)
    assert session.last["generated"]["text"].startswith(text)
    session.delete()
    with pytest.raises(RequestError, match="deleted"):
        session.step({"text": "x"})


def test_the_services_error_is_raised_with_its_status_and_field(client):
    """A program can act on the code without reading the message."""
    with pytest.raises(RequestError, match="knows tokens 0 to 255") as refused:
        client.predict("lm", [{"tokens": [999]}])
    assert (refused.value.status, refused.value.code, refused.value.param) == (
        422,
        "token_out_of_range",
        "instances.0.tokens",
    )
    with pytest.raises(RequestError, match="max_tokens"):
        list(client.stream("lm", "a", max_tokens=10_000))
    with pytest.raises(RequestError, match="no JSON"):
        client.predict("lm", [{"values": [float("nan")]}])


def test_the_key_goes_with_every_request(serve):
    """Without it the error says what is missing."""
    server = serve(classifier_service(), api_key="k")
    with Client(server.url, api_key="k") as client:
        assert client.predict("clf", [{"text": "a"}])
    with Client(server.url) as client, pytest.raises(RequestError, match="RECURRA_API_KEY"):
        client.models()


def test_nobody_there_is_said():
    """No stack trace of sockets."""
    with Client("http://127.0.0.1:9", tries=2) as client, pytest.raises(UnreachableError, match="does not answer"):
        client.models()


def test_the_async_client_does_the_same(lm):
    """One event loop, both a stream and a session."""

    async def talk():
        async with AsyncClient(lm.url) as client:
            options = {"max_tokens": 12, "temperature": 0}
            whole = (await client.complete("lm", "def ", **options))["choices"][0]["text"]
            parts = [text async for text in client.stream("lm", "def ", **options)]
            session = await client.session({"prompt": "ab"})
            branch = await session.fork()
            streamed = [text async for text in session.stream({"text": "c"}, max_tokens=5, temperature=0)]
            await branch.step({"text": "x"})
            copy = await client.session_from(await session.snapshot())
            await branch.delete()
            with pytest.raises(RequestError, match="deleted"):
                await client.session(id=branch.id)
            models = await client.models()
            predictions = await client.predict("lm", [{"prompt": "a"}])
            return whole, parts, session, streamed, copy, models, predictions

    whole, parts, session, streamed, copy, models, predictions = asyncio.run(talk())
    assert "".join(parts) == whole
    assert session.number == copy.number == 9
    assert session.last["generated"]["text"].startswith("".join(streamed))
    assert models[0]["id"] == "lm" and len(predictions) == 1


class _Busy(BaseHTTPRequestHandler):
    """Refuses twice, then answers; a stand-in for a service at its limit, which a real one is too fast to be."""

    asked: list[float]
    status = 429

    def do_GET(self) -> None:
        self.asked.append(time.monotonic())
        ready = len(self.asked) > 2
        self.send_response(200 if ready else self.status)
        if not ready:
            self.send_header("retry-after", "0" if len(self.asked) == 1 else "1")
        self.end_headers()
        self.wfile.write(b'{"data": [{"id": "x"}]}' if ready else b"busy")

    def log_message(self, *_) -> None:
        pass


@pytest.fixture(params=[429, 503])
def busy(request):
    handler = type("Handler", (_Busy,), {"asked": [], "status": request.param})
    server = HTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", handler
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_it_comes_back_when_the_service_said(busy, kind):
    """Retry-After is kept, and only 429 and 503 are tried again."""
    url, handler = busy

    async def ask():
        async with AsyncClient(url) as client:
            return await client.models()

    found = asyncio.run(ask()) if kind == "async" else Client(url).models()

    assert found == [{"id": "x"}]
    assert handler.asked[2] - handler.asked[1] >= 1


def test_it_gives_up_after_its_tries(busy):
    """And then says what the service said."""
    url, handler = busy
    with Client(url, tries=2) as client, pytest.raises(RequestError, match="busy") as refused:
        client.models()
    assert refused.value.status == handler.status
    assert len(handler.asked) == 2
