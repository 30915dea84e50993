"""A candidate beside the stable bundle: who gets it, who judges it, and how it goes."""

from __future__ import annotations

import math
import time
from dataclasses import asdict

import httpx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.serving.conftest import Clock, Server
from tests.unit.serving.test_pinning import say

from recurra.data.vocabulary import ByteVocabulary
from recurra.models.config import ModelConfig
from recurra.models.weights import save_weights
from recurra.registry.bundle import BundleParts
from recurra.registry.registry import Registry
from recurra.serving.bundles import Bundles
from recurra.serving.config import GuardConfig
from recurra.serving.guard import CanaryGuard
from recurra.serving.lineup import Lineup
from recurra.serving.run import ServeRun
from recurra.serving.sessions import new_session_id
from recurra.serving.split import place_of, takes_candidate
from recurra.tasks.language_model import LanguageModelConfig, LanguageModelTask

STABLE, CANDIDATE = "a" * 64, "b" * 64


@given(st.text(max_size=50), st.floats(0, 1), st.floats(0, 1))
def test_the_same_key_gets_the_same_version_and_keeps_the_candidate_when_the_share_grows(key, one, other):
    """Every replica decides alike without asking; a share that grows moves nobody back."""
    low, high = sorted((one, other))

    assert takes_candidate(key, low) == takes_candidate(key, low)
    assert takes_candidate(key, high) or not takes_candidate(key, low)
    assert takes_candidate(key, 1.0) and not takes_candidate(key, 0.0)


@pytest.mark.parametrize("share", [0.01, 0.1, 0.5])
def test_the_share_is_the_share(share):
    """Of 20,000 ids, within five standard deviations of a fair draw; and independent of the shard, which hashes them too."""
    count = 20_000
    ids = [new_session_id() for _ in range(count)]
    taken = sum(takes_candidate(id, share) for id in ids)
    unnamed = sum(takes_candidate(None, share) for _ in range(count))
    tolerance = 5 * math.sqrt(count * share * (1 - share))

    assert abs(taken - count * share) < tolerance
    assert abs(unnamed - count * share) < tolerance
    assert abs(sum(map(place_of, ids)) / count - 0.5) < 0.02


def guarded(**limits) -> tuple[CanaryGuard, Clock]:
    clock = Clock()
    config = GuardConfig(**{"min_requests": 10, "window_s": 60.0, **limits})
    return CanaryGuard(config, CANDIDATE, STABLE, clock), clock


def hear(guard: CanaryGuard, digest: str, count: int, seconds: float | None = 0.01, failed: int = 0) -> None:
    for number in range(count):
        guard.hear(digest, None if number < failed else seconds, number < failed)


def test_a_candidate_that_fails_more_than_it_may_is_taken_back():
    """The reason names what was seen, the limit, and what the stable bundle did."""
    guard, _ = guarded(error_rate=0.1)
    hear(guard, STABLE, 100, failed=1)
    hear(guard, CANDIDATE, 20, failed=2)
    assert guard.breach() is None
    hear(guard, CANDIDATE, 1, failed=1)

    assert guard.breach() == "guard: 3 of 21 requests failed (14.3%, limit 10.0%, stable 1.0%)"


def test_a_candidate_is_not_blamed_for_what_ails_the_stable_bundle_too():
    """The store is down, or the machine overloaded: to take the candidate back would cure nothing."""
    guard, _ = guarded(error_rate=0.1, p95_ms=50.0)
    hear(guard, STABLE, 100, seconds=0.3, failed=50)
    hear(guard, CANDIDATE, 100, seconds=0.3, failed=50)

    assert guard.breach() is None


def test_a_slow_candidate_is_taken_back():
    """By the time that 95 of 100 requests take at most."""
    guard, _ = guarded(p95_ms=50.0)
    hear(guard, STABLE, 100, seconds=0.01)
    hear(guard, CANDIDATE, 95, seconds=0.01)
    hear(guard, CANDIDATE, 5, seconds=0.2)
    assert guard.breach() is None
    hear(guard, CANDIDATE, 1, seconds=0.2)

    assert guard.breach() == "guard: p95 of 101 requests is 200 ms (limit 50 ms, stable 10 ms)"


def test_few_requests_and_old_ones_are_no_verdict():
    """One failure of one is 100 %, and what was is not what is."""
    guard, clock = guarded(min_requests=10)
    hear(guard, CANDIDATE, 9, failed=9)
    assert guard.breach() is None
    clock.now += 61
    hear(guard, CANDIDATE, 10)

    assert guard.breach() is None


class Published:
    """A registry with a stable bundle and a candidate, and the service of both as one replica has it."""

    def __init__(self, url: str, *, broken: bool, **canary) -> None:
        self.registry = Registry(f"{url}/registry")
        self.stable = self._publish(1, "production")
        self.candidate = self._publish(2, "candidate", broken=broken)
        serve = {
            "slots": 16,
            "deterministic": True,
            "sessions": {"vault": None, "trust_s": 0.2},
            "canary": {"model": "lm@candidate", "share": 0.5, **canary},
        }
        self.run = ServeRun.model_validate(
            {"name": "lm", "model": "lm@production", "registry": self.registry.url, "serve": serve}
        )

    def replica(self) -> Server:
        bundles = Bundles(self.run, lambda metrics: None)
        stable, candidate = bundles.stable(), bundles.candidate()
        lineup = Lineup(stable, candidate, 0.5, load=bundles.older)
        return Server(stable, lineup=lineup, trial=bundles.trial(lineup) if candidate is not None else None)

    def _publish(self, seed: int, alias: str, *, broken: bool = False) -> str:
        task = LanguageModelTask(LanguageModelConfig(), ByteVocabulary())
        torch.manual_seed(seed)
        model = task.build_model(ModelConfig(cell="gru", hidden_size=12))
        if broken:
            with torch.no_grad():
                next(model.parameters()).fill_(float("nan"))
        parts = BundleParts(
            task=task.describe(),
            model=model.config.model_dump(mode="json"),
            shape=asdict(model.shape),
            state_spec=model.state_spec.to_json(),
        )
        return self.registry.publish("lm", parts, save_weights(model), alias=alias)


def predict(server: Server, **headers: str) -> httpx.Response:
    return server.client.post("/v1/predict/lm", json={"instances": [{"prompt": "a"}]}, headers=headers)


def metrics_of(server: Server) -> dict[str, float]:
    lines = (line for line in server.client.get("/metrics").text.splitlines() if not line.startswith("#"))
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}


@pytest.fixture
def trial(local_url):
    """A sound candidate with half of everything, at two replicas."""
    published = Published(local_url, broken=False)
    servers = [published.replica() for _ in range(2)]
    yield published, servers
    for server in servers:
        server.close()


def test_both_versions_answer_at_one_address_and_say_which(trial):
    """In the body or a header; the same key gets the same version at every replica; a digest names its own."""
    published, (one, other) = trial
    both = {published.stable, published.candidate}
    keyed = [
        [predict(server, **{"x-request-id": f"r{number}"}).json()["digest"] for number in range(20)]
        for server in (one, other)
    ]
    completion = one.post("/v1/completions", model="lm", prompt="a", max_tokens=3)
    named = {
        digest: {
            one.post(f"/v1/predict/lm@{digest[:12]}", instances=[{"prompt": "a"}]).json()["digest"] for _ in range(8)
        }
        for digest in both
    }

    listed = {model["id"]: model.get("share") for model in one.client.get("/v1/models").json()["data"]}

    assert listed == {"lm": None, f"lm@{published.candidate[:12]}": 0.5}
    assert keyed[0] == keyed[1] and set(keyed[0]) == both
    assert completion.headers["x-recurra-digest"] in both
    assert {predict(one).json()["digest"] for _ in range(30)} == both
    assert named == {digest: {digest} for digest in both}


def test_a_session_stays_with_the_version_that_it_was_given(trial):
    """By the hash of its id, at whichever replica; also after the candidate has been rolled back by hand."""
    published, (one, other) = trial
    sessions = [one.post("/v1/sessions").json() for _ in range(16)]
    given = {session["id"]: session["digest"] for session in sessions}
    for server in (other, one):
        assert {id: say(server, id)["digest"] for id in given} == given
    assert set(given.values()) == {published.stable, published.candidate}
    assert all((digest == published.candidate) == takes_candidate(id, 0.5) for id, digest in given.items())

    published.registry.take_back("lm", "candidate", published.candidate, published.stable, "by hand")
    until = time.monotonic() + 60
    while not (one.lineup.withdrawn and other.lineup.withdrawn):
        assert time.monotonic() < until
        time.sleep(0.05)
    assert {id: say(other, id)["digest"] for id in given} == given
    assert {predict(one).json()["digest"] for _ in range(20)} == {published.stable}
    assert {other.post("/v1/sessions").json()["digest"] for _ in range(10)} == {published.stable}


def test_a_broken_candidate_is_rolled_back_by_itself(local_url):
    """Its requests fail, the guard sees it, the history says why, another replica hears of it, and one that starts later
    does not try it again."""
    published = Published(local_url, broken=True, guard={"min_requests": 10, "error_rate": 0.05})
    first, second = published.replica(), published.replica()
    try:
        seen: list[httpx.Response] = []
        until = time.monotonic() + 60
        while not (first.lineup.withdrawn and second.lineup.withdrawn):
            assert time.monotonic() < until
            seen += [predict(first) for _ in range(5)]
        failures = [answer for answer in seen if answer.status_code != 200]
        (entry,) = [entry for entry in published.registry.history("lm") if entry.action == "rollback"]
        counted = metrics_of(first)
        later = published.replica()
        later.close()

        assert {answer.status_code for answer in failures} == {500}
        assert {answer.json()["error"]["code"] for answer in failures} == {"output_not_finite"}
        assert {answer.headers.get("x-recurra-digest") for answer in seen} <= {
            published.stable,
            published.candidate,
            None,
        }
        assert (entry.alias, entry.digest, entry.previous) == ("candidate", published.stable, published.candidate)
        assert entry.actor == "service lm" and "requests failed" in entry.reason
        assert {predict(server).status_code for server in (first, second) for _ in range(10)} == {200}
        assert later.lineup.candidate is None
        bad = f'digest="{published.candidate[:12]}",model="lm"'
        assert counted[f"recurra_canary_share_ratio{{{bad}}}"] == 0
        assert counted[f'recurra_canary_requests_total{{{bad},outcome="failed"}}'] == len(failures)
    finally:
        first.close()
        second.close()


@settings(deadline=None, max_examples=20)
@given(st.lists(st.sampled_from(["promote", "take back"]), max_size=6))
def test_a_candidate_that_is_promoted_again_may_try_again(tmp_path_factory, actions):
    """Taken back means: the last move away from it was a roll-back."""
    registry = Registry(tmp_path_factory.mktemp("r").as_uri())
    parts = BundleParts(task={"kind": "x"}, model={}, shape={}, state_spec=[])
    stable = registry.publish("lm", parts, b"one", alias="production")
    bad = registry.publish("lm", parts, b"two", alias="candidate")
    for action in actions:
        if action == "promote":
            registry.promote("lm", bad, "candidate")
        else:
            moved = registry.take_back("lm", "candidate", bad, stable, "why")
            assert moved != registry.take_back("lm", "candidate", bad, stable, "why") or not moved

    assert registry.was_taken_back("lm", "candidate", bad) == (actions[-1:] == ["take back"])
