"""Sessions over HTTP, on two replicas that share nothing but the store."""

import concurrent.futures
import json
import time

import httpx
import numpy as np
import pytest
from tests.unit.serving.conftest import classifier_service, continued, language_service, service_of
from tests.unit.serving.test_app import error_of, events_of
from tests.unit.serving.vault_ring import VaultThread

from recurra.serving.session_store import SessionStore
from recurra.serving.sessions import ID_PATTERN
from recurra.serving.versions import WriteThrough

SESSION = {"trust_s": 0.2}


@pytest.fixture(scope="module", params=["store", "vault"])
def pair(request, serve, store):
    """Two replicas of one language model, which share a store alone or a vault."""
    shared = store.child(f"pair-{request.param}")
    vault = VaultThread(shared.child("vault")) if request.param == "vault" else None
    shards = vault.shards if vault else []
    yield [serve(language_service(shared, sessions=SESSION), vault=shards) for _ in range(2)]
    if vault is not None:
        vault.close()


def new(server, **body) -> dict:
    response = server.post("/v1/sessions", **body)
    assert response.status_code == 201, response.text
    return response.json()


def step(server, id: str, **body) -> dict:
    response = server.post(f"/v1/sessions/{id}/step", **body)
    assert response.status_code == 200, response.text
    return response.json()


def whole(server, text: str) -> dict:
    """The prediction for a text at once."""
    return server.post("/v1/predict/lm", instances=[{"prompt": text}]).json()["predictions"][0]


def same(one: dict, other: dict) -> bool:
    """Whether two predictions have the same likeliest tokens with the same logarithms."""
    return [n["token"] for n in one["next"]] == [n["token"] for n in other["next"]] and np.allclose(
        [n["logprob"] for n in one["next"]], [n["logprob"] for n in other["next"]], atol=1e-5
    )


def test_a_session_says_after_its_parts_what_the_whole_says(pair):
    """Law: cut anywhere, stepped on whichever replica, the session is the sequence."""
    text = "def main():\n    return 0"
    id = new(pair[0])["id"]
    assert ID_PATTERN.fullmatch(id)
    position = 0
    for turn, end in enumerate((1, 4, 5, 12, len(text))):
        answer = step(pair[turn % 2], id, input={"text": text[position:end]}, step=position and position + 1)
        position = end
        assert answer["step"] == end + 1  # the start of the document counts
        assert same(answer["output"], whole(pair[0], text[:end]))


@pytest.mark.parametrize("cell", ["rnn", "gru", "ntm"])
def test_every_cell_has_sessions(serve, store, cell):
    """Nothing in serving knows the cell: an NTM's memory travels through the store like any state."""
    shared = store.child(f"cell-{cell}")
    one, other = (serve(language_service(shared, cell=cell)) for _ in range(2))
    id = new(one, input={"prompt": "ab"})["id"]
    step(other, id, input={"text": "c"}, step=3)
    answer = step(one, id, input={"text": "de"}, step=4)

    assert same(answer["output"], whole(one, "abcde"))


def test_a_session_may_start_with_an_input(pair):
    """A prompt and its first answer in one request."""
    session = new(pair[0], input={"prompt": "import"})

    assert session["step"] == 7
    assert same(session["output"], whole(pair[0], "import"))


def test_what_was_generated_is_part_of_the_session(pair):
    """Generate, then generate on without an input, on the other replica: the same tokens as in one go."""
    service = pair[0].service
    prompt = service.task.encode({"prompt": "for "}).inputs
    wanted = continued(service.served.model, prompt, 10)
    id = new(pair[0])["id"]
    greedy = {"temperature": 0}
    first = step(pair[0], id, input={"prompt": "for "}, generate={**greedy, "max_tokens": 4}, step=0)
    second = step(pair[1], id, generate={**greedy, "max_tokens": 6}, step=first["step"])

    assert first["generated"]["tokens"] + second["generated"]["tokens"] == wanted
    assert second["step"] == len(prompt) + 10


def test_suggestions_leave_the_session_where_it_was(pair):
    """commit=false generates from a copy: what is typed next follows what was typed before."""
    id = new(pair[0], input={"prompt": "ab"})["id"]
    suggested = step(pair[0], id, input={"text": "c"}, generate={"max_tokens": 5, "temperature": 0, "commit": False})
    answer = step(pair[1], id, input={"text": "d"})

    assert len(suggested["generated"]["tokens"]) == 5
    assert suggested["step"] == 4
    assert same(answer["output"], whole(pair[0], "abcd"))


def test_a_repeat_gets_the_stored_answer_from_any_replica(pair):
    """The answer was lost on the way and the client asks again: the step must not be taken twice."""
    id = new(pair[0])["id"]
    body = {"step": 0, "input": {"text": "x = "}, "generate": {"max_tokens": 5}}
    first = step(pair[0], id, **body)

    assert step(pair[0], id, **body) == first
    assert step(pair[1], id, **body) == first
    assert pair[1].client.get(f"/v1/sessions/{id}").json()["step"] == first["step"]


def test_another_request_for_a_step_that_was_taken_is_a_conflict(pair):
    """It says where the session is, so that the client can go on."""
    id = new(pair[0])["id"]
    at = step(pair[0], id, step=0, input={"text": "abc"})["step"]
    for server in pair:
        for number in (0, at + 1):
            response = server.post(f"/v1/sessions/{id}/step", step=number, input={"text": "z"})
            error = error_of(response)
            assert (response.status_code, error["code"], error["param"]) == (409, "step_conflict", "step")
            assert f"at step {at}" in error["message"]


def test_requests_at_once_on_two_replicas_never_lose_or_double_a_step(pair):
    """Each client retries until its own input is in; in the end every input is in once."""
    id = new(pair[0])["id"]

    def client(number: int) -> int:
        conflicts = 0
        with httpx.Client(base_url=pair[number % 2].url, timeout=30) as http:
            while True:
                response = http.post(f"/v1/sessions/{id}/step", json={"input": {"text": "ab"}})
                if response.status_code == 200:
                    return conflicts
                assert response.status_code == 409, response.text
                conflicts += 1

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        list(pool.map(client, range(16)))

    answer = step(pair[0], id, input={"text": "!"})
    assert answer["step"] == 1 + 16 * 2 + 1
    assert same(answer["output"], whole(pair[0], "ab" * 16 + "!"))


def test_a_fork_goes_its_own_way(pair):
    """One prompt, many continuations: both have the past, neither has the other's future."""
    id = new(pair[0], input={"prompt": "shared "})["id"]
    other = pair[1].client.post(f"/v1/sessions/{id}/fork").json()["id"]
    left = step(pair[1], id, input={"text": "left"})
    right = step(pair[0], other, input={"text": "right"})

    assert other != id
    assert same(left["output"], whole(pair[0], "shared left"))
    assert same(right["output"], whole(pair[0], "shared right"))


def test_a_state_goes_out_and_comes_back(pair):
    """A snapshot makes a new session, and sets an old one back."""
    id = new(pair[0], input={"prompt": "abc"})["id"]
    snapshot = pair[0].client.get(f"/v1/sessions/{id}/state").content
    step(pair[0], id, input={"text": "def"})
    binary = {"content-type": "application/octet-stream"}
    copy = pair[1].client.post("/v1/sessions", content=snapshot, headers=binary)
    back = pair[1].client.put(f"/v1/sessions/{id}/state", content=snapshot, headers=binary)

    assert (copy.status_code, back.status_code) == (201, 200)
    for session in (copy.json(), back.json()):
        assert session["step"] == 4
        answer = step(pair[0], session["id"], input={"text": "x"}, step=4)
        assert same(answer["output"], whole(pair[0], "abcx"))


def test_a_snapshot_that_does_not_fit_is_refused(pair, serve, store):
    """Another bundle's state, noise, or numbers that are none must not reach the model."""
    other = serve(language_service(store.child("gru"), cell="gru"))
    alien = other.client.get(f"/v1/sessions/{new(other)['id']}/state").content
    id = new(pair[0], input={"prompt": "abc"})["id"]
    good = pair[0].client.get(f"/v1/sessions/{id}/state").content
    size = int.from_bytes(good[:8], "little")
    header = json.loads(good[8 : 8 + size])
    end = 8 + size
    not_finite = good[:end] + np.full((len(good) - end) // 4, np.nan, np.float32).tobytes()
    text = json.dumps(header).replace("d" * 64, "e" * 64).encode()
    text += b" " * (-len(text) % 8)
    digest = len(text).to_bytes(8, "little") + text + good[end:]
    cases = [
        (alien, 412, "state_mismatch"),
        (b"noise", 422, "invalid_snapshot"),
        (good[:-8], 422, "invalid_snapshot"),
        (not_finite, 422, "not_finite"),
        (digest, 412, "digest_mismatch"),
        (b"", 422, "invalid_snapshot"),
    ]
    for data, status, code in cases:
        response = pair[0].client.put(f"/v1/sessions/{id}/state", content=data)
        assert (response.status_code, error_of(response)["code"]) == (status, code)
    assert same(step(pair[1], id, input={"text": "d"})["output"], whole(pair[0], "abcd"))


def test_a_state_that_was_altered_on_the_way_is_refused(pair):
    """Its SHA-256 comes with it; who sends the header back has it checked."""
    id = new(pair[0], input={"prompt": "abc"})["id"]
    response = pair[0].client.get(f"/v1/sessions/{id}/state")
    header = {"repr-digest": response.headers["repr-digest"]}
    altered = response.content[:-1] + bytes([response.content[-1] ^ 1])
    refused = pair[0].client.put(f"/v1/sessions/{id}/state", content=altered, headers=header)

    assert (refused.status_code, error_of(refused)["code"]) == (400, "digest_wrong")
    assert pair[1].client.put(f"/v1/sessions/{id}/state", content=response.content, headers=header).status_code == 200


def test_a_client_may_ask_for_a_shorter_life(serve, store):
    """Never for a longer one than the service gives."""
    server = serve(language_service(store.child("life"), sessions={"ttl_s": 60.0}))
    short, long = new(server, ttl_s=0.2), new(server, ttl_s=1e6)
    assert short["expires_at"] - time.time() < 0.2
    assert long["expires_at"] - time.time() < 61
    time.sleep(0.3)
    response = server.post(f"/v1/sessions/{short['id']}/step", input={"text": "a"})
    assert (response.status_code, error_of(response)["code"]) == (410, "session_expired")


def test_a_stream_ends_with_the_answer_that_acknowledges_it(pair):
    """Text on the way, then the session's new step: whoever has that event has lost nothing."""
    id = new(pair[0])["id"]
    body = {"input": {"prompt": "while "}, "generate": {"max_tokens": 30, "seed": 3}, "step": 0}
    *parts, answer, done = events_of(pair[0].post(f"/v1/sessions/{id}/stream", **body))

    assert done == "[DONE]"
    assert [token for part in parts for token in part["tokens"]] == answer["generated"]["tokens"]
    assert (
        "".join(part["text"] for part in parts) == answer["generated"]["text"][: len("".join(p["text"] for p in parts))]
    )
    assert events_of(pair[1].post(f"/v1/sessions/{id}/stream", **body)) == [answer, "[DONE]"]
    assert pair[1].client.get(f"/v1/sessions/{id}").json()["step"] == answer["step"]


def test_a_deleted_session_is_gone_everywhere(pair):
    """410 and not 404: the client learns that it was there."""
    id = new(pair[0])["id"]
    step(pair[1], id, input={"text": "a"})
    assert pair[0].client.delete(f"/v1/sessions/{id}").status_code == 204
    time.sleep(0.3)  # the other replica trusts its copy for so long
    for server in pair:
        for response in (
            server.post(f"/v1/sessions/{id}/step", input={"text": "a"}),
            server.client.get(f"/v1/sessions/{id}"),
            server.client.delete(f"/v1/sessions/{id}"),
        ):
            assert (response.status_code, error_of(response)["code"]) == (410, "session_deleted")


def test_a_stale_replica_cannot_overwrite_what_another_has_written(pair):
    """It still believes in its own copy: the version's key stops it, and it does the step anew on the newest one."""
    id = new(pair[0])["id"]
    step(pair[0], id, input={"text": "a"})
    step(pair[1], id, input={"text": "b"}, step=2)
    answer = step(pair[0], id, input={"text": "c"})

    assert answer["step"] == 4
    assert same(answer["output"], whole(pair[0], "abc"))


def test_an_expired_session_says_so(serve, store):
    """410 with a reason; the state is cleared away."""
    server = serve(language_service(store.child("short"), sessions={"ttl_s": 0.2, "trust_s": 0.05}))
    id = new(server)["id"]
    time.sleep(0.3)
    for _ in range(2):
        response = server.post(f"/v1/sessions/{id}/step", input={"text": "a"})
        assert (response.status_code, error_of(response)["code"]) == (410, "session_expired")


@pytest.mark.parametrize("id", ["nothing", "s-" + "x" * 32, "..%2F..%2Fetc", "s-" + "x" * 500])
def test_an_unknown_session_is_404(pair, id):
    """An id that was never given out, or could not have been."""
    for response in (
        pair[0].client.get(f"/v1/sessions/{id}"),
        pair[0].post(f"/v1/sessions/{id}/step", input={"text": "a"}),
    ):
        assert response.status_code == 404
        assert error_of(response)["code"] in ("session_not_found", "route_not_found")


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({}, 422, "input"),
        ({"input": {"text": ""}}, 422, "input.text"),
        ({"input": {"tokens": [256]}}, 422, "input.tokens"),
        ({"input": {"text": "a"}, "step": -1}, 422, "step"),
        ({"input": {"text": "a"}, "steps": 1}, 422, "steps"),
        ({"input": {"text": "a"}, "generate": {"max_tokens": 0}}, 422, "generate.max_tokens"),
        ({"input": {"text": "a"}, "generate": {"tokens": 3}}, 422, "generate.tokens"),
        ({"input": {"text": "a"}, "options": {"top": 0}}, 422, "options.top"),
        ({"generate": {"max_tokens": 3}}, 422, "input"),
        ({"input": {"text": "a" * 5000}}, 413, "input"),
    ],
)
def test_a_bad_step_leaves_the_session_as_it_was(pair, body, status, param):
    """An error is no step."""
    session = new(pair[0], input={"prompt": "abc"})
    response = pair[0].post(f"/v1/sessions/{session['id']}/step", **body)

    assert (response.status_code, error_of(response)["param"]) == (status, param)
    assert pair[0].client.get(f"/v1/sessions/{session['id']}").json()["step"] == session["step"]


def test_a_classifier_keeps_a_running_verdict(serve, store):
    """A model with one output a sequence has sessions, too: each answer is as if the sequence ended there."""
    server = serve(classifier_service(store.child("clf"), model={"pooling": "mean"}))
    id = new(server)["id"]
    text = ""
    for part in ("not ", "good", " at all"):
        text += part
        running = step(server, id, input={"text": part})["output"]
        at_once = server.post("/v1/predict/clf", instances=[{"text": text}]).json()["predictions"][0]
        assert running["scores"] == pytest.approx(at_once["scores"], abs=1e-5)


def test_a_model_that_reads_the_whole_has_no_sessions(serve, store):
    """Bidirectional models say so, and where to go."""
    server = serve(classifier_service(store.child("bi"), model={"bidirectional": True}))
    response = server.post("/v1/sessions")

    assert (response.status_code, error_of(response)["code"]) == (404, "no_sessions")
    assert "/v1/predict/clf" in error_of(response)["message"]


def test_more_sessions_than_fit_in_memory_are_read_from_the_store(serve, store):
    """The byte budget bounds memory, not the number of sessions."""
    server = serve(language_service(store.child("many"), sessions={"memory_bytes": 1 << 16}))
    ids = [new(server, input={"prompt": f"{n}"})["id"] for n in range(60)]

    for n, id in enumerate(ids):
        assert same(step(server, id, input={"text": "x"})["output"], whole(server, f"{n}x"))
    text = server.client.get("/metrics").text
    (warm,) = [line for line in text.splitlines() if line.startswith("recurra_sessions{")]
    assert float(warm.split()[-1]) < 60


def test_a_store_that_fails_is_said_and_nothing_is_acknowledged(serve, tmp_path):
    """503 with Retry-After; with its step number the same request is right again later."""
    from recurra.storage.url import open_store

    folder = tmp_path / "gone"
    server = serve(language_service(open_store(folder.as_uri()), sessions=SESSION))
    id = new(server)["id"]
    session_folder = folder / id
    session_folder.rename(folder / "away")
    session_folder.write_text("a file where the folder should be")
    response = server.post(f"/v1/sessions/{id}/step", step=0, input={"text": "a"})
    assert (response.status_code, error_of(response)["code"]) == (503, "session_store_failed")
    assert int(response.headers["retry-after"]) >= 1

    session_folder.unlink()
    (folder / "away").rename(session_folder)
    assert step(server, id, step=0, input={"text": "a"})["step"] == 2


def test_replaced_and_expired_versions_are_cleared_away(tmp_path):
    """The store must not fill up with the past."""
    from tests.unit.serving.conftest import Clock

    from recurra.models.state import StateSpec, StateTensor
    from recurra.serving.sessions import empty_snapshot
    from recurra.serving.slots import StateLayout
    from recurra.storage.url import open_store

    clock = Clock()
    files = open_store(tmp_path.as_uri())
    versions = SessionStore(files, StateLayout(StateSpec((StateTensor("h", (2,)),))), "d" * 64, keep_s=60, clock=clock)
    first = empty_snapshot("lm", "d" * 64, bytes(8), 0.0, id="s-1")
    from dataclasses import replace

    for number in range(1, 6):
        versions.add(replace(first, version=number))
    assert versions.prune() == 0
    clock.now += 61
    assert versions.prune() == 4
    assert [info.key for info in files.list()] == ["s-1/000000000005.safetensors"]
    assert list(versions.idle(older_than_s=100, now_s=time.time() + 200)) == ["s-1"]
    assert list(versions.idle(older_than_s=100, now_s=time.time())) == []


def test_the_sweep_ends_what_nobody_uses(serve, store):
    """A session whose client never comes back is a tombstone after its time, and nothing after twice that."""
    shared = store.child("sweep")
    service = language_service(shared)
    wall = time.time() + 1000

    def sweep() -> list[str]:
        WriteThrough(SessionStore(shared, service.engine.layout, service.served.digest, keep_s=0)).sweep(100, wall)
        return [info.key for info in shared.list()]

    server = serve(service_of(service.served, shared))
    id = new(server)["id"]
    assert sweep()[-1] == f"{id}/000000000002.safetensors"
    assert sweep() == []
