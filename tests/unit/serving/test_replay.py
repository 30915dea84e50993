"""Sessions that another bundle reads again after an update (`serve.sessions.on_update: replay`)."""

from __future__ import annotations

import concurrent.futures
import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save
from tests.unit.serving.replay_fleet import BYTES, GREEDY, NEW, OLD, OTHER, Fleet, language_task, new, state, step
from tests.unit.serving.test_app import error_of

from recurra.data.vocabulary import CharacterVocabulary
from recurra.serving import journal
from recurra.serving.openapi import SAFETENSORS
from recurra.tasks.music import MusicConfig, MusicTask

LETTERS = "abcdefgh"
BOS = BYTES.bos


@pytest.fixture(scope="module")
def journaled():
    """Small sessions are kept as journal entries, too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(journal, "WORTH_BYTES", 0)
        yield


@pytest.fixture(scope="module", params=["lstm-store", "lstm-vault", "gru-vault", "ntm-vault"])
def versions(request, store, journaled):
    """Two replicas of the old bundle, two of the new one, one of a deployment that went back to the old one."""
    cell, kept = request.param.split("-")
    fleet = Fleet(store.child(f"replay-{request.param}"), vault=kept == "vault", cell=cell)
    yield (
        [fleet.replica(OLD, released_s=1.0) for _ in range(2)],
        [fleet.replica(NEW, released_s=2.0) for _ in range(2)],
        fleet.replica(OLD, released_s=3.0),
    )
    fleet.close()


@pytest.fixture(params=["store", "vault"])
def fleet(request, store, tmp_path, journaled):
    fleet = Fleet(store.child(f"{tmp_path.name}-{request.param}"), vault=request.param == "vault")
    yield fleet
    fleet.close()


def talk(servers, id: str, parts) -> list[int]:
    """Send the parts by turns. Returns the tokens that are part of the session since."""
    tokens = []
    for turn, (text, count, commit) in enumerate(parts):
        body = {"generate": {**GREEDY, "max_tokens": count, "commit": commit}} if count else {}
        answer = step(servers[turn % len(servers)], id, input={"text": text}, **body)
        tokens += BYTES.encode(text).tolist()
        if count and commit:
            tokens += answer["generated"]["tokens"]
    return tokens


def fed(server, tokens: list[int]) -> str:
    """A session that was begun here and has read these tokens."""
    assert tokens[0] == BOS
    return new(server, input={"tokens": tokens})


def said(server, id: str) -> list[dict]:
    """What the session answers to a few more requests, but for what only its id and time make different."""
    bodies = [{"input": {"text": "q"}, "raw": True}, {"input": {"text": "ab"}, "generate": GREEDY}]
    answers = [step(server, id, **body) for body in bodies]
    return [{name: a[name] for name in ("digest", "step", "output", "raw", "generated")} for a in answers]


PARTS = st.lists(
    st.tuples(st.text("abc(= \n", min_size=1, max_size=9), st.integers(0, 3), st.booleans()), min_size=1, max_size=5
)


@settings(max_examples=8, deadline=None)
@given(before=PARTS, after=PARTS)
def test_a_replayed_session_is_one_that_the_new_bundle_has_read_from_the_start(versions, before, after):
    """Law: whatever was read at once or step by step, or generated, at whichever replica, over whole snapshots or the
    vault's journal, no bit of an answer is another than without the update; and so back again."""
    olds, news, back = versions
    id = new(olds[0])
    tokens = [BOS, *talk(olds, id, before)]
    expected = said(news[1], fed(news[1], tokens))
    fork = news[0].client.post(f"/v1/sessions/{id}/fork").json()["id"]
    assert said(news[0], fork) == expected

    tokens += talk(news, id, after)
    expected = said(back, fed(back, tokens))
    assert said(back, id) == expected
    assert {answer["digest"] for answer in expected} == {OLD}


@pytest.mark.parametrize("cell", ["lstm", "gru", "ntm"])
def test_a_long_session_is_read_again_in_parts(store, tmp_path, cell):
    """Without the deterministic mode whole parts are read in forward passes: the same but for rounding."""
    fleet = Fleet(store.child(tmp_path.name), vault=False, cell=cell, deterministic=False)
    try:
        old, new_ = fleet.replica(OLD, released_s=1.0), fleet.replica(NEW, released_s=2.0)
        text = "def main():\n    return 0\n" * 12
        id = new(old, input={"prompt": text[:150]})
        for at in range(150, len(text), 50):
            step(old, id, input={"text": text[at : at + 50]})
        reference = new(new_, input={"prompt": text})
        answers = [step(new_, which, input={"text": "q"}, raw=True) for which in (id, reference)]

        assert answers[0]["replayed"] == {"steps": len(text) + 1, "of": len(text) + 1}
        assert answers[0]["raw"] == pytest.approx(answers[1]["raw"], abs=1e-5)
    finally:
        fleet.close()


def test_the_first_answer_says_what_was_read_again(fleet):
    """Once; the step number goes on, and a repeat of the last request before the update still gets its answer."""
    old = fleet.replica(OLD, released_s=1.0)
    id = new(old, input={"prompt": "ab"})
    before = step(old, id, input={"text": "c"}, generate=GREEDY, step=3)
    new_ = fleet.replica(NEW, released_s=2.0)
    repeated = step(new_, id, input={"text": "c"}, generate=GREEDY, step=3)
    looked = new_.client.get(f"/v1/sessions/{id}").json()
    after = [step(new_, id, input={"text": "d"}, step=8), step(new_, id, input={"text": "e"}, step=9)]

    assert (repeated, before["step"], before["replayed"]) == (before, 8, None)
    read = {"steps": 7, "of": 7}  # the last generated token is read with the next input
    assert (looked["digest"], looked["step"], looked["replayed"]) == (NEW, 8, read)
    assert [(answer["step"], answer["replayed"], answer["reset"]) for answer in after] == [
        (9, read, False),
        (10, None, False),
    ]
    assert {answer["digest"] for answer in after} == {NEW}


def test_of_a_longer_session_the_last_steps_are_read_again(fleet):
    """The answer says how many of how many; the session answers as one that the new bundle has read those of."""
    old = fleet.replica(OLD, released_s=1.0, replay_steps=6)
    id = new(old, input={"tokens": [BOS, 1, 2, 3]})
    step(old, id, input={"tokens": [4, 5, BOS, 6]})
    for token in (7, 8, 9, 10):
        step(old, id, input={"tokens": [token]})
    new_ = fleet.replica(NEW, released_s=2.0, replay_steps=6)
    looked = new_.client.get(f"/v1/sessions/{id}").json()
    reference = fed(new_, [BOS, 6, 7, 8, 9, 10])
    states = [state(new_, which) for which in (id, reference)]
    answers = [step(new_, id, input={"text": "q"}, raw=True), step(new_, reference, input={"text": "q"}, raw=True)]

    assert looked["replayed"] == {"steps": 6, "of": 12}
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    assert answers[0]["raw"] == answers[1]["raw"]
    assert (answers[0]["step"], answers[1]["step"]) == (13, 7)


def test_a_bundle_that_reads_otherwise_leaves_the_session_to_its_own(store, tmp_path):
    """The same number of other characters: every token would mean another one. The session is pinned."""
    tasks = {
        digest: language_task(CharacterVocabulary(letters)) for digest, letters in ((OLD, LETTERS), (NEW, "hgfedcba"))
    }
    fleet = Fleet(store.child(tmp_path.name), vault=True, tasks=tasks | {OTHER: tasks[OLD]})
    try:
        old, new_ = fleet.replica(OLD, released_s=1.0), fleet.replica(NEW, released_s=2.0)
        parts = [("abc", 2, True), ("d", 2, True)]
        ids = [new(old) for _ in range(2)]
        answers = [
            [step(server, id, input={"text": text}, generate=GREEDY) for text, _, _ in parts]
            for server, id in zip((old, new_), ids, strict=True)
        ]
        assert [a["generated"] for a in answers[0]] == [a["generated"] for a in answers[1]]
        assert {(a["digest"], a["replayed"]) for a in answers[1]} == {(OLD, None)}

        other = fleet.replica(
            OTHER, released_s=3.0
        )  # reads as its own did: what the pinned session has read is still known
        replayed = step(other, ids[1], input={"text": "a"})
        assert (replayed["digest"], replayed["replayed"]["of"]) == (OTHER, answers[1][1]["step"] - 1)
    finally:
        fleet.close()


def test_a_session_whose_beginning_is_not_known_goes_on_with_its_own_bundle(fleet):
    """It was begun, or stepped, while nothing was kept; half of a past would be another one."""
    pinning = fleet.replica(OLD, released_s=1.0, policy="pin")
    old = fleet.replica(OLD, released_s=1.0)
    begun = new(pinning, input={"prompt": "ab"})
    step(old, begun, input={"text": "c"})
    between = new(old, input={"prompt": "ab"})
    pinning.client.put(
        f"/v1/sessions/{between}/state", content=pinning.client.get(f"/v1/sessions/{between}/state").content
    )
    new_ = fleet.replica(NEW, released_s=2.0)

    for id in (begun, between):
        answer = step(new_, id, input={"text": "d"})
        assert (answer["digest"], answer["replayed"], answer["reset"]) == (OLD, None, False)


@pytest.mark.parametrize("policy", ["pin", "reset"])
def test_nothing_is_kept_where_nothing_is_replayed(fleet, policy):
    """A session stays as small as its state, however long it lives."""
    server = fleet.replica(OLD, policy=policy)
    id = new(server, input={"prompt": "ab"})
    sizes = set()
    for _ in range(3):
        step(server, id, input={"text": "c" * 50}, step=None)
        sizes.add(len(b"".join(value.numpy().tobytes() for value in state(server, id).values())))

    assert len(sizes) == 1
    assert not any(name.startswith("history") for name in state(server, id))


def test_what_is_kept_is_as_narrow_as_the_vocabulary(fleet):
    """One byte for each of 256 tokens, and never more of them than the setting says."""
    server = fleet.replica(OLD, replay_steps=100)
    id = new(server, input={"prompt": "ab"})
    kept = []
    for _ in range(3):
        step(server, id, input={"text": "c" * 50})
        kept.append(state(server, id)["history.inputs"])

    assert [(len(inputs), inputs.dtype) for inputs in kept] == [
        (53, torch.uint8),
        (100, torch.uint8),
        (100, torch.uint8),
    ]


def test_a_snapshot_takes_its_history_along(fleet):
    """Out and in again, it is replayed as the session that it was taken from; without it, or after a cut of its own, it is
    pinned or cut, and never a session with a past that it did not have."""
    old = fleet.replica(OLD, released_s=1.0)
    id = new(old, input={"prompt": "abc"})
    data = old.client.get(f"/v1/sessions/{id}/state").content
    imported = import_into(old, data)
    without = import_into(
        old, altered(data, lambda facts, tensors: (facts.pop("history"), tensors.pop("history.inputs")))
    )
    new_ = fleet.replica(NEW, released_s=2.0)

    assert said(new_, imported) == said(new_, id)
    assert step(new_, without, input={"text": "q"})["digest"] == OLD


@pytest.mark.parametrize(
    "alter",
    [
        lambda facts, tensors: tensors.update({"history.inputs": torch.full((4,), 200, dtype=torch.uint8)}),
        lambda facts, tensors: tensors.update({"history.inputs": tensors["history.inputs"].float()}),
        lambda facts, tensors: facts["history"].update(dropped=-1),
        lambda facts, tensors: facts["history"].update(encoding="another"),
        lambda facts, tensors: facts["history"].update(dropped="x"),
        lambda facts, tensors: tensors.pop("history.inputs"),
        lambda facts, tensors: tensors.update({"history.inputs": torch.tensor(7, dtype=torch.uint8)}),
    ],
)
def test_an_altered_history_is_refused(store, alter):
    """Its numbers go into the engine after the next update."""
    tasks = {OLD: language_task(CharacterVocabulary(LETTERS))}
    fleet = Fleet(store.child(f"altered-{id(alter)}"), vault=False, tasks=tasks)
    try:
        old = fleet.replica(OLD)
        data = old.client.get(f"/v1/sessions/{new(old, input={'prompt': 'abc'})}/state").content
        response = old.client.post("/v1/sessions", content=altered(data, alter), headers={"content-type": SAFETENSORS})

        assert (response.status_code, error_of(response)["code"]) == (422, "invalid_snapshot")
    finally:
        fleet.close()


def altered(data: bytes, alter) -> bytes:
    head = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    facts, tensors = json.loads(head["__metadata__"]["recurra"]), load(data)
    alter(facts, tensors)
    return save(tensors, {"recurra": json.dumps(facts)})


def import_into(server, data: bytes) -> str:
    response = server.client.post("/v1/sessions", content=data, headers={"content-type": SAFETENSORS})
    assert response.status_code == 201, response.text
    return response.json()["id"]


def test_requests_at_once_replay_a_session_once(fleet):
    """Both new replicas read it again; one commits, and the other finds that: the retry gets the stored answer, a request for
    the same step that is another one a conflict, and no step is taken twice."""
    old = fleet.replica(OLD, released_s=1.0)
    news = [fleet.replica(NEW, released_s=2.0) for _ in range(2)]
    for _ in range(4):
        id = new(old, input={"prompt": "abc"})
        body = {"input": {"text": "d"}, "generate": GREEDY, "step": 4}
        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            answers = list(pool.map(lambda server, id=id, body=body: step(server, id, **body), news))
        other = news[1].post(f"/v1/sessions/{id}/step", **{**body, "input": {"text": "e"}})

        assert answers[0] == answers[1]
        assert answers[0]["replayed"] == {"steps": 4, "of": 4}
        assert (other.status_code, error_of(other)["code"]) == (409, "step_conflict")
        assert news[0].client.get(f"/v1/sessions/{id}").json()["step"] == 9


def test_an_old_replica_goes_on_with_the_new_bundle(fleet):
    """While replicas are being replaced a session meets both versions by turns, and is replayed once."""
    old = fleet.replica(OLD, released_s=1.0)
    id = new(old, input={"prompt": "abc"})
    new_ = fleet.replica(NEW, released_s=2.0)
    wanted = said(new_, fed(new_, [BOS, *b"abc", *b"x", *b"y"]))
    answers = [step(server, id, input={"text": text}) for server, text in ((new_, "x"), (old, "y"))]

    assert [answer["replayed"] for answer in answers] == [{"steps": 4, "of": 4}, None]
    assert said(old, id) == wanted


def test_a_session_of_a_candidate_that_was_taken_back_goes_on_with_the_stable_bundle(fleet):
    """From what it has read, at a replica that knows it as the candidate's."""
    server = fleet.replica(OLD, candidate=NEW)
    id = new(server, input={"prompt": "abc"})
    assert step(server, id, input={"text": "d"})["digest"] == NEW
    server.lineup.withdraw()

    assert said(server, id) == said(server, fed(server, [BOS, *b"abcd"]))
    assert server.client.get(f"/v1/sessions/{id}").json()["digest"] == OLD


def test_features_are_read_again_too(store, tmp_path):
    """Float32, as they were read before."""
    tasks = {digest: MusicTask(MusicConfig(), 12, 60) for digest in (OLD, NEW)}
    fleet = Fleet(store.child(tmp_path.name), vault=True, cell="gru", tasks=tasks)
    try:
        old, new_ = fleet.replica(OLD, released_s=1.0), fleet.replica(NEW, released_s=2.0)
        notes = [[60, 64], [], [62], [71]]
        id = new(old, input={"notes": notes[:2]})
        for each in notes[2:]:
            step(old, id, input={"notes": [each]})
        reference = new(new_, input={"notes": notes})
        answers = [step(new_, which, input={"notes": [[65]]}, raw=True) for which in (id, reference)]

        assert [answer["replayed"] for answer in answers] == [{"steps": 4, "of": 4}, None]
        assert answers[0]["raw"] == answers[1]["raw"]
    finally:
        fleet.close()


def test_the_memory_of_a_replayed_session_shows_its_last_steps(store, tmp_path):
    """What the new bundle's heads did when it read them again."""
    fleet = Fleet(store.child(tmp_path.name), vault=True, cell="ntm")
    try:
        old, new_ = fleet.replica(OLD, released_s=1.0), fleet.replica(NEW, released_s=2.0)
        id, reference = new(old, input={"prompt": "abcdef"}), fed(new_, [BOS, *b"abcdef"])
        views = [new_.client.get(f"/v1/sessions/{which}/memory?steps=5").json() for which in (id, reference)]

        assert views[0]["step"] == 7 and len(views[0]["read_weights"]) == 5
        assert {**views[0], "id": ""} == {**views[1], "id": ""}
    finally:
        fleet.close()


def test_a_stream_goes_on_from_the_replayed_state(fleet):
    """Its last event says so, like any answer."""
    old = fleet.replica(OLD, released_s=1.0)
    id = new(old, input={"prompt": "abc"})
    new_ = fleet.replica(NEW, released_s=2.0)
    wanted = step(new_, fed(new_, [BOS, *b"abc"]), input={"text": "d"}, generate=GREEDY)
    text = new_.post(f"/v1/sessions/{id}/stream", input={"text": "d"}, generate=GREEDY).text
    last = json.loads([line[6:] for line in text.splitlines() if line.startswith("data: {")][-1])

    assert (last["generated"], last["replayed"]) == (wanted["generated"], {"steps": 4, "of": 4})
