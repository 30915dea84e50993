"""Sessions on a vault whose shards die, with states large enough to be journaled."""

import concurrent.futures
import threading
import time

import httpx
import numpy as np
import pytest
import torch
from tests.unit.serving.conftest import Server, language_service, service_of
from tests.unit.serving.test_app import error_of
from tests.unit.serving.vault_ring import VaultThread

from recurra.data.vocabulary import ByteVocabulary
from recurra.models.config import ModelConfig
from recurra.serving import vault_versions
from recurra.serving.journal import WORTH_BYTES
from recurra.serving.service import ServedModel
from recurra.tasks.language_model import LanguageModelConfig, LanguageModelTask

TEXT = "def main(argument):\n    return 0\n" * 6
GREEDY = {"max_tokens": 5, "temperature": 0}


@pytest.fixture(scope="module")
def model():
    """An LSTM with a state of 4 KiB."""
    task = LanguageModelTask(LanguageModelConfig(), ByteVocabulary())
    torch.manual_seed(3)
    return ServedModel("lm", "d" * 64, task, task.build_model(ModelConfig(cell="lstm", hidden_size=512)).eval())


@pytest.fixture
def vault(store):
    vault = VaultThread(store.child(f"v{time.monotonic_ns()}"), 2)
    yield vault
    vault.close()


def replicas(serve, model, store, vault, journal_steps=64) -> list:
    sessions = {"trust_s": 0.2, "vault": {"journal_steps": journal_steps}}
    return [
        serve(service_of(model, store, deterministic=True, sessions=sessions), vault=vault.shards) for _ in range(2)
    ]


def unkilled(server, parts) -> list[list[int]]:
    """Generated tokens of a session that nothing happens to."""
    id = server.post("/v1/sessions").json()["id"]
    return [
        server.post(f"/v1/sessions/{id}/step", input={"text": part}, generate=GREEDY).json()["generated"]["tokens"]
        for part in parts
    ]


def test_a_large_state_is_journaled_and_replayed_to_the_bit(serve, model, store, vault):
    """Law: with a journal of any length up to K, on whichever replica, the session is the sequence, bit for bit."""
    pair = replicas(serve, model, store.child("j"), vault, journal_steps=40)
    parts = [TEXT[at : at + 7] for at in range(0, 140, 7)]
    wanted = unkilled(pair[0], parts)
    assert model.model.state_spec.size_bytes >= WORTH_BYTES
    id = pair[0].post("/v1/sessions").json()["id"]
    found, step, lengths = [], 0, []
    for turn, part in enumerate(parts):
        ask = {"input": {"text": part}, "generate": GREEDY, "step": step}
        answer = pair[turn % 2].post(f"/v1/sessions/{id}/step", **ask).json()
        step = answer["step"]
        found.append(answer["generated"]["tokens"])
        (record,) = [s._records[id] for s in vault.ring.shards if id in s._records]
        lengths.append(len(record.journal))

    assert found == wanted
    assert max(lengths) > 1 and lengths.count(0) > 2  # entries, and a whole state each time K is reached
    states = [server.client.get(f"/v1/sessions/{id}/state").content for server in pair]
    assert states[0] == states[1]


def test_shards_that_die_under_load_lose_and_double_nothing(serve, model, store, vault):
    """Each client goes on where it is, whatever dies; every session says what it says undisturbed."""
    pair = replicas(serve, model, store.child("k"), vault)
    parts = [TEXT[at : at + 3] for at in range(0, 36, 3)]
    wanted = unkilled(pair[0], parts)
    stop = threading.Event()
    answered: list[int] = []

    def killer() -> None:
        turn = 0
        while not stop.is_set():
            victim = turn % 2
            vault.loop.call_soon_threadsafe(vault.ring.kill, victim)
            time.sleep(0.05)
            vault.do(vault.ring.start(victim))
            turn += 1
            some_more = len(answered) + 8
            while len(answered) < some_more and not stop.is_set():
                time.sleep(0.01)

    def client(number: int) -> list[list[int]]:
        with httpx.Client(timeout=120) as http:
            id = http.post(f"{pair[number % 2].url}/v1/sessions").json()["id"]
            step, found = 0, []
            for turn, part in enumerate(parts):
                url = pair[(number + turn) % 2].url
                ask = {"input": {"text": part}, "generate": GREEDY, "step": step}
                response = http.post(f"{url}/v1/sessions/{id}/step", json=ask)
                assert response.status_code == 200, response.text
                step = response.json()["step"]
                found.append(response.json()["generated"]["tokens"])
                answered.append(number)
            return found

    thread = threading.Thread(target=killer)
    thread.start()
    try:
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            results = list(pool.map(client, range(16)))
    finally:
        stop.set()
        thread.join()
    assert results == [wanted] * 16


def test_a_lease_that_was_taken_in_vain_costs_nothing(serve, store, vault):
    """The other replica took the session over, its client left, and nothing has changed: the step is no conflict."""
    one, other = (
        serve(language_service(store.child("vain"), sessions={"trust_s": 60.0}), vault=vault.shards) for _ in "ab"
    )
    id = one.post("/v1/sessions", input={"prompt": "ab"}).json()["id"]
    refused = other.post(f"/v1/sessions/{id}/step", input={"tokens": [999]}, step=3)  # takes it, and fails
    answer = one.post(f"/v1/sessions/{id}/step", input={"text": "c"}, step=3)

    assert (refused.status_code, answer.status_code, answer.json()["step"]) == (422, 200, 4)
    assert other.post(f"/v1/sessions/{id}/step", input={"text": "d"}, step=4).json()["step"] == 5


def test_sessions_of_a_time_without_a_vault_go_on_in_it(serve, store, vault):
    """An update that brings the vault loses no session."""
    shared = store.child("older")
    before = serve(language_service(shared))
    session = before.post("/v1/sessions", input={"prompt": "abc"}).json()
    after = serve(language_service(shared), vault=vault.shards)
    moved = after.post(f"/v1/sessions/{session['id']}/step", input={"text": "d"}, step=4).json()
    whole = after.post("/v1/predict/lm", instances=[{"prompt": "abcd"}]).json()["predictions"][0]

    assert moved["step"] == 5
    assert np.allclose(
        [n["logprob"] for n in moved["output"]["next"]], [n["logprob"] for n in whole["next"]], atol=1e-5
    )


def test_a_key_over_its_budget_is_told_so(serve, store):
    """429: the client can end sessions and go on."""
    vault = VaultThread(store.child("budget-vault"), 2, bytes_per_key=4000)
    server = serve(language_service(store.child("budget")), vault=vault.shards)
    responses = [server.post("/v1/sessions") for _ in range(12)]
    refused = [response for response in responses if response.status_code == 429]

    assert refused and error_of(refused[0])["code"] == "session_budget"
    for response in responses:
        if response.status_code == 201:
            assert server.client.delete(f"/v1/sessions/{response.json()['id']}").status_code == 204
    assert server.post("/v1/sessions").status_code == 201
    vault.close()


def test_a_replica_that_leaves_has_everything_flushed(store, vault):
    """It may be the last one, and the cluster may end next."""
    server = Server(language_service(store.child("leave")), vault=vault.shards)
    for _ in range(8):
        assert server.post("/v1/sessions").status_code == 201
    before = [shard.held for shard in vault.ring.shards]
    server.close()
    after = [shard.held for shard in vault.ring.shards]

    assert sum(held["unflushed"] for held in before) == 8
    assert [held["unflushed"] for held in after] == [0, 0]


def test_a_vault_that_stays_away_is_said(serve, store, vault, monkeypatch):
    """503 with Retry-After, and the same request is right again later."""
    monkeypatch.setattr(vault_versions, "PATIENCE_S", 0.3)
    server = serve(language_service(store.child("gone")), vault=vault.shards)
    id = server.post("/v1/sessions").json()["id"]
    for index in range(2):
        vault.loop.call_soon_threadsafe(vault.ring.kill, index)
    response = server.post(f"/v1/sessions/{id}/step", step=0, input={"text": "a"})
    assert (response.status_code, error_of(response)["code"]) == (503, "session_store_failed")
    vault.do(vault.ring.start())
    assert server.post("/v1/sessions").status_code == 201


def test_the_first_session_has_all_shards_found(serve, store, vault):
    """A shard that is first looked for when a session needs it may be needed while the cluster has no head to ask."""
    server = serve(language_service(store.child("met")), vault=vault.shards)
    before = [link.met for link in vault.ring.links]
    server.post("/v1/sessions").raise_for_status()
    until_s = time.monotonic() + 60
    while not all(link.met for link in vault.ring.links):
        assert time.monotonic() < until_s
        time.sleep(0.01)

    assert before == [False, False]
