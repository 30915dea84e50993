"""Which bundles a deployment serves, found out when it is made."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from recurra.registry.registry import Registry
from recurra.serving.run import Release, ServeRun


def released(run: ServeRun, registry: Registry, wall: Callable[[], float] = time.time) -> ServeRun:
    """The service with the bundles that its references mean now.

    Ray Serve replaces replicas only when their arguments have changed, so an alias that has moved must show in them; and
    a replica that is started later, by autoscaling or after a crash, must serve what the others do.

    Raises:
        RegistryError: There is no such model, alias or bundle.
    """
    canary = run.serve.canary
    release = Release(
        digest=registry.resolve(run.model),
        candidate=registry.resolve(canary.model) if canary is not None else None,
        made_s=wall(),
    )
    return run.model_copy(update={"release": release})


def unless_the_same(run: ServeRun, deployed: dict[str, Any] | None) -> ServeRun:
    """The service as it is to be deployed: one that serves just what is deployed is the same deployment, and no replica
    is replaced for it.

    Args:
        run: What is wanted.
        deployed: Arguments of the application that runs, if there is one.
    """
    before = (deployed or {}).get("release") or {}
    same = run.model_copy(update={"release": run.release.model_copy(update={"made_s": before.get("made_s", 0.0)})})
    return same if same.arguments() == deployed else run


def trial_of(run: ServeRun, registry: Registry) -> str | None:
    """What a deployment tries out, or why it does not, in a line for people; None where it was not to try anything."""
    canary, candidate = run.serve.canary, run.release.candidate
    if canary is None or candidate is None:
        return None
    name, _, alias = canary.model.partition("@")
    if candidate == run.release.digest:
        return f"none: {canary.model} is the same bundle"
    if registry.was_taken_back(name, alias, candidate):
        return f"none: {canary.model} ({candidate[:12]}) was rolled back; see 'recurra models history {name}'"
    return f"{canary.model} ({candidate[:12]}) for {canary.share:.1%}"
