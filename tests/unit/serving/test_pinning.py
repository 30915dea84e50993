"""Sessions when another bundle of the model is deployed: pinned to their own, or set back to the start of the new one."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import pytest
import torch
from tests.unit.serving.conftest import Server, service_of
from tests.unit.serving.test_app import error_of
from tests.unit.serving.vault_ring import VaultThread

from recurra.data.vocabulary import ByteVocabulary
from recurra.errors import RegistryError, RequestError
from recurra.models.config import ModelConfig
from recurra.serving import journal
from recurra.serving.lineup import Lineup
from recurra.serving.service import ServedModel, Service
from recurra.tasks.language_model import LanguageModelConfig, LanguageModelTask

GREEDY = {"max_tokens": 6, "temperature": 0}
OLD, NEW, NEWEST = ("a" * 64, "b" * 64, "c" * 64)
SIZES = {OLD: 12, NEW: 16, NEWEST: 12}
"""Another size is another layout of the state."""


def version(digest: str, store, *, released_s: float = 0.0, **sessions) -> Service:
    """One bundle of the model `lm`, with weights of its own."""
    task = LanguageModelTask(LanguageModelConfig(), ByteVocabulary())
    torch.manual_seed(int(digest[:1], 16))
    model = task.build_model(ModelConfig(cell="lstm", hidden_size=SIZES[digest])).eval()
    served = ServedModel("lm", digest, task, model, released_s=released_s)
    return service_of(served, store, deterministic=True, sessions={"trust_s": 0.2, **sessions})


@pytest.fixture(params=["store", "vault"])
def fleet(request, store, tmp_path):
    """Starts replicas that share sessions: `replica(digest, released_s=…, …)`."""
    shared = store.child(f"pinning-{tmp_path.name}-{request.param}")
    vault = VaultThread(shared.child("vault")) if request.param == "vault" else None
    servers: list[Server] = []

    def replica(digest: str, *, released_s: float = 0.0, known: tuple[str, ...] = (OLD, NEW, NEWEST), **sessions):
        def load(wanted: str) -> Service:
            if wanted not in known:
                raise RegistryError(f"There is no bundle {wanted[:12]} of lm.")
            return version(wanted, shared, released_s=released_s, **sessions)

        stable = version(digest, shared, released_s=released_s, **sessions)
        lineup = Lineup(stable, load=load, vault=vault.shards if vault else ())
        servers.append(Server(stable, lineup=lineup))
        return servers[-1]

    yield replica
    for server in servers:
        server.close()
    if vault is not None:
        vault.close()


def new(server: Server, **body) -> str:
    response = server.post("/v1/sessions", **body)
    assert response.status_code == 201, response.text
    return response.json()["id"]


def say(server: Server, id: str, text: str = "x = ", **body) -> dict:
    response = server.post(f"/v1/sessions/{id}/step", input={"text": text}, generate=GREEDY, **body)
    assert response.status_code == 200, response.text
    return response.json()


def undisturbed(server: Server, turns: int) -> list[list[int]]:
    id = new(server)
    return [say(server, id)["generated"]["tokens"] for _ in range(turns)]


def test_a_pinned_session_goes_on_to_the_bit_after_an_update(fleet: Callable[..., Server]):
    """Law: whichever replica of whichever version steps it, and whether the other's state has another layout or not, the
    session says what it would have said without the update."""
    old, new_, newest = fleet(OLD), fleet(NEW), fleet(NEWEST)
    wanted = undisturbed(old, 6)
    id = new(old)
    answers = [say(server, id) for server in (old, new_, newest, old, new_, newest)]

    assert [answer["generated"]["tokens"] for answer in answers] == wanted
    assert {answer["digest"] for answer in answers} == {OLD}
    assert not any(answer["reset"] for answer in answers)
    assert undisturbed(new_, 2) != wanted[:2]


def test_a_session_of_a_newer_version_goes_on_at_an_old_replica(fleet):
    """In a rolling update it comes to replicas that were started before its bundle was deployed."""
    old, new_ = fleet(OLD), fleet(NEW)
    wanted = undisturbed(new_, 3)
    id = new(new_)

    assert [say(server, id)["generated"]["tokens"] for server in (new_, old, new_)] == wanted


def test_everything_can_be_done_with_a_pinned_session(fleet):
    """Look, state, fork, stream, delete: at a replica that has another bundle deployed."""
    old, new_ = fleet(OLD), fleet(NEW)
    id = new(old, input={"prompt": "abc"})
    looked = new_.client.get(f"/v1/sessions/{id}").json()
    state = new_.client.get(f"/v1/sessions/{id}/state").content
    fork = new_.client.post(f"/v1/sessions/{id}/fork").json()
    put = new_.client.put(f"/v1/sessions/{id}/state", content=state)
    streamed = new_.post(f"/v1/sessions/{id}/stream", input={"text": "x = "}, generate=GREEDY)
    deleted = new_.client.delete(f"/v1/sessions/{id}")

    assert (looked["digest"], looked["step"], fork["digest"], put.json()["digest"]) == (OLD, 4, OLD, OLD)
    assert fork["id"] != id
    assert f'"digest": "{OLD}"' in streamed.text and "[DONE]" in streamed.text
    assert deleted.status_code == 204
    assert old.client.get(f"/v1/sessions/{id}").status_code == 410


def test_a_session_whose_bundle_is_gone_is_refused(fleet):
    """The answer says what to do; the session itself is not touched."""
    old = fleet(OLD)
    id = new(old)
    response = fleet(NEW, known=()).post(f"/v1/sessions/{id}/step", input={"text": "a"})

    assert (response.status_code, error_of(response)["code"]) == (412, "digest_mismatch")
    assert "publish that bundle again" in error_of(response)["message"]
    assert say(old, id)["step"] > 0


def test_older_bundles_make_room_for_one_another(fleet):
    """A replica holds as many as the setting says, and sessions of all of them go on by turns."""
    servers = {digest: fleet(digest) for digest in (OLD, NEWEST)}
    wanted = {digest: undisturbed(server, 3) for digest, server in servers.items()}
    replica = fleet(NEW, older_bundles=1)
    ids = {digest: new(server) for digest, server in servers.items()}
    said = {digest: [] for digest in servers}
    for _ in range(3):
        for digest, id in ids.items():
            said[digest].append(say(replica, id)["generated"]["tokens"])

    assert said == wanted
    assert len(replica.lineup._older) == 1


def test_a_bundle_in_use_does_not_make_room(store):
    """Its requests would fail; who wants another bundle is told to come again."""
    shared = store.child("busy")

    async def ask() -> None:
        lineup = Lineup(version(NEW, shared, older_bundles=1), load=lambda digest: version(digest, shared))
        await lineup.open(asyncio.get_running_loop())
        try:
            async with lineup.desk(OLD) as desk:
                with pytest.raises(RequestError, match="older_bundles") as refused:
                    async with lineup.desk(NEWEST):
                        pass
                assert (refused.value.status, refused.value.retry_after_s) == (503, 1.0)
                assert desk.service.engine.healthy
            async with lineup.desk(NEWEST) as desk:
                assert desk.digest == NEWEST
        finally:
            await lineup.close()

    asyncio.run(ask())


def test_an_older_bundle_is_put_away_when_no_session_can_need_it(fleet):
    """After the time limit of a session; its memory is free again, and a session that comes late is told that it expired."""
    old, replica = fleet(OLD, ttl_s=2.0), fleet(NEW, ttl_s=2.0)
    id = new(old)
    say(replica, id)
    assert list(replica.lineup._older) == [OLD]
    until = time.monotonic() + 60
    while replica.lineup._older:
        assert time.monotonic() < until
        time.sleep(0.1)

    assert replica.post(f"/v1/sessions/{id}/step", input={"text": "a"}).status_code == 410


def test_a_reset_session_starts_anew_and_keeps_its_number(fleet):
    """`on_update: reset`: the answer says so, once; a repeat of the last request before it still gets its answer."""
    old = fleet(OLD, on_update="reset", released_s=1.0)
    id = new(old)
    before = say(old, id, step=0)
    new_ = fleet(NEW, on_update="reset", released_s=2.0)
    repeated = say(new_, id, step=0)
    looked = new_.client.get(f"/v1/sessions/{id}").json()
    fork = new_.client.post(f"/v1/sessions/{id}/fork").json()["id"]
    forked = say(new_, fork)
    after = [say(new_, id, step=before["step"]), say(new_, id)]

    assert repeated == before
    assert (forked["reset"], forked["generated"]) == (False, after[0]["generated"])
    assert (looked["digest"], looked["step"], looked["reset"]) == (NEW, before["step"], True)
    assert [answer["reset"] for answer in after] == [True, False]
    assert [answer["generated"]["tokens"] for answer in after] == undisturbed(new_, 2)
    assert after[0]["step"] == before["step"] + 1 + 4 + 6
    assert {answer["digest"] for answer in after} == {NEW}


def test_an_old_replica_does_not_set_back_what_a_new_one_has_set_forth(fleet):
    """While replicas are being replaced a session meets both versions by turns, and is reset once."""
    old = fleet(OLD, on_update="reset", released_s=1.0)
    id = new(old)
    say(old, id)
    new_ = fleet(NEW, on_update="reset", released_s=2.0)
    wanted = undisturbed(new_, 4)
    answers = [say(server, id) for server in (new_, old, new_, old)]

    assert [answer["reset"] for answer in answers] == [True, False, False, False]
    assert [answer["generated"]["tokens"] for answer in answers] == wanted


def test_after_a_reset_no_journal_leads_over_from_the_old_bundle(store, tmp_path, monkeypatch):
    """A version as inputs on top of the old bundle's state would be a state of neither."""
    monkeypatch.setattr(journal, "WORTH_BYTES", 0)
    vault = VaultThread(store.child(f"{tmp_path.name}-vault"))
    shared = store.child(tmp_path.name)
    settings = [(OLD, 1.0), (NEW, 2.0), (NEW, 2.0)]
    services = [version(digest, shared, on_update="reset", released_s=made_s) for digest, made_s in settings]
    old, *news = servers = [Server(service, vault=vault.shards) for service in services]
    try:
        ids = [new(old), new(news[0])]
        say(old, ids[0])
        turns = [(news[0], "a"), (news[1], "b"), (news[0], "c")]
        said = [[server.post(f"/v1/sessions/{id}/step", input={"text": text}) for server, text in turns] for id in ids]
        outputs = [[answer.raise_for_status().json()["output"] for answer in answers] for answers in said]
        assert outputs[0] == outputs[1]
    finally:
        for server in servers:
            server.close()
        vault.close()


def test_the_sweep_ends_sessions_of_other_bundles_too(store):
    """A session that was begun with a bundle that nobody serves any more must not stay for ever."""
    from recurra.serving.session_store import SessionStore
    from recurra.serving.versions import WriteThrough

    shared = store.child("other-sweep")
    server = Server(version(OLD, shared))
    id = new(server)
    server.close()
    layout = version(NEW, shared).engine.layout

    assert WriteThrough(SessionStore(shared, layout, NEW, keep_s=0)).sweep(100, time.time() + 1000) == 1
    assert [info.key for info in shared.list()][-1] == f"{id}/000000000002.safetensors"
