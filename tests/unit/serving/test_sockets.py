"""Sessions over WebSockets, with the library's own client."""

import json
import time

import pytest
import websockets.exceptions
from tests.unit.serving.conftest import classifier_service, language_service
from websockets.sync.client import connect


def talk(server, id: str, **settings):
    return connect(f"{server.url.replace('http', 'ws')}/v1/sessions/{id}/stream", **settings)


def answers(socket, **body) -> list[dict]:
    """All that comes for one message."""
    socket.send(json.dumps(body))
    found = [json.loads(socket.recv(timeout=20))]
    while not {"step", "error"} & set(found[-1]):
        found.append(json.loads(socket.recv(timeout=20)))
    return found


def test_one_connection_carries_many_steps(lm):
    """Generated tokens as they come, then the session's own answer; a step without generation is answered at once."""
    id = lm.post("/v1/sessions").json()["id"]
    with talk(lm, id) as socket:
        (first,) = answers(socket, input={"text": "def "}, step=0)
        *parts, second = answers(socket, input={"text": "main"}, generate={"max_tokens": 20, "temperature": 0}, step=5)
        again = answers(socket, input={"text": "main"}, generate={"max_tokens": 20, "temperature": 0}, step=5)

    assert first["step"] == 5 and first["output"]["next"]
    assert [token for part in parts for token in part["tokens"]] == second["generated"]["tokens"]
    assert again == [second]
    assert lm.client.get(f"/v1/sessions/{id}").json()["step"] == second["step"] == 29


def test_an_error_ends_the_request_and_not_the_connection(lm):
    """A client that mistypes a field goes on with the same socket."""
    id = lm.post("/v1/sessions").json()["id"]
    with talk(lm, id) as socket:
        codes = [
            answers(socket, **body)[-1]["error"]["code"]
            for body in ({"inputs": 1}, {"input": {"tokens": [999]}}, {"input": {"text": "a"}, "step": 7})
        ]
        socket.send("no json")
        codes.append(json.loads(socket.recv(timeout=20))["error"]["code"])
        socket.send(json.dumps({"input": {"text": "a" * 5000}}))
        codes.append(json.loads(socket.recv(timeout=20))["error"]["code"])
        (good,) = answers(socket, input={"text": "a"})

    assert codes == ["invalid_request", "token_out_of_range", "step_conflict", "invalid_json", "too_large"]
    assert good["step"] == 2


def test_a_client_that_leaves_in_mid_answer_frees_its_slot(serve, store):
    """Nobody reads on, so nobody computes on; and the session stays where it was."""
    server = serve(language_service(store.child("ws"), max_new_tokens=100_000_000, deadline_s=1000.0))
    id = server.post("/v1/sessions").json()["id"]
    with talk(server, id) as socket:
        socket.send(json.dumps({"input": {"text": "a"}, "generate": {"max_tokens": 100_000_000, "temperature": 0}}))
        socket.recv(timeout=20)
    until = time.monotonic() + 60
    while server.service.engine.load.busy and time.monotonic() < until:
        time.sleep(0.01)

    assert server.service.engine.load.busy == 0
    assert server.client.get(f"/v1/sessions/{id}").json()["step"] == 0


def test_the_key_is_asked_for_before_the_socket_opens(serve, store):
    """The same header as everywhere, and 401 without it."""
    server = serve(language_service(store.child("ws-key")), api_key="k")
    header = {"authorization": "Bearer k"}
    id = server.client.post("/v1/sessions", headers=header).json()["id"]
    with pytest.raises(websockets.exceptions.InvalidStatus) as refused:
        talk(server, id)
    assert refused.value.response.status_code == 401
    with talk(server, id, additional_headers=header) as socket:
        assert answers(socket, input={"text": "a"})[0]["step"] == 2


def test_a_model_without_sessions_says_so(serve, store):
    """In the envelope, and then it hangs up."""
    server = serve(classifier_service(store.child("ws-bi"), model={"bidirectional": True}))
    with talk(server, "s-x") as socket:
        assert json.loads(socket.recv(timeout=20))["error"]["code"] == "no_sessions"
