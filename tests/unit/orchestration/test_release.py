"""What a deployment serves is found out once, and a deployment that would serve the same is the same one."""

from __future__ import annotations

from pathlib import Path

from recurra.orchestration.release import released, trial_of, unless_the_same
from recurra.registry.bundle import BundleParts
from recurra.registry.registry import Registry
from recurra.serving.config import ServeConfig
from recurra.serving.run import ServeRun


def publish(registry: Registry, weights: bytes, alias: str) -> str:
    parts = BundleParts(task={"kind": "x"}, model={}, shape={}, state_spec=[])
    return registry.publish("lm", parts, weights, alias=alias)


def run(registry: Registry, **serve) -> ServeRun:
    return ServeRun(name="lm", model="lm@production", registry=registry.url, serve=ServeConfig(**serve))


def test_an_alias_that_has_moved_makes_another_deployment(tmp_path: Path):
    """Ray Serve replaces replicas only when their arguments change: with the alias alone in them, promoting a bundle and
    deploying again did nothing at all."""
    registry = Registry(tmp_path.as_uri())
    first = publish(registry, b"one", "production")
    deployed = released(run(registry), registry, lambda: 1.0)
    second = publish(registry, b"two", "production")
    again = unless_the_same(released(run(registry), registry, lambda: 2.0), deployed.arguments())

    assert (deployed.release.digest, again.release.digest) == (first, second)
    assert again.release.made_s == 2.0
    assert again.arguments() != deployed.arguments()


def test_deploying_the_same_again_replaces_no_replica(tmp_path: Path):
    """Neither the time of the call nor a promotion of the same bundle is a change; a setting is."""
    registry = Registry(tmp_path.as_uri())
    publish(registry, b"one", "production")
    deployed = released(run(registry), registry, lambda: 1.0).arguments()
    later = released(run(registry), registry, lambda: 2.0)

    assert unless_the_same(later, deployed).arguments() == deployed
    assert unless_the_same(later, None).release.made_s == 2.0
    other = released(run(registry, slots=8), registry, lambda: 2.0)
    assert unless_the_same(other, deployed) == other


def test_the_candidate_is_found_out_too(tmp_path: Path):
    """It is the bundle that its alias means now, for all replicas and as long as they are deployed."""
    registry = Registry(tmp_path.as_uri())
    publish(registry, b"one", "production")
    candidate = publish(registry, b"two", "candidate")
    canary = {"model": "lm@candidate", "share": 0.2}

    assert released(run(registry, canary=canary), registry).release.candidate == candidate
    assert released(run(registry), registry).release.candidate is None


def test_a_deployment_says_what_it_tries_out(tmp_path: Path):
    """Or why it does not: who deploys must not take a candidate that was rolled back for one that is being tried."""
    registry = Registry(tmp_path.as_uri())
    stable = publish(registry, b"one", "production")
    candidate = publish(registry, b"two", "candidate")
    wanted = run(registry, canary={"model": "lm@candidate", "share": 0.25})
    deployed = released(wanted, registry)

    assert trial_of(released(run(registry), registry), registry) is None
    assert trial_of(deployed, registry) == f"lm@candidate ({candidate[:12]}) for 25.0%"
    registry.take_back("lm", "candidate", candidate, stable, "guard: slow")
    assert "was rolled back" in (trial_of(deployed, registry) or "")
    assert trial_of(released(wanted, registry), registry) == "none: lm@candidate is the same bundle"
