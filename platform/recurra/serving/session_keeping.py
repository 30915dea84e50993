"""Puts together how a service keeps its sessions."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from numpy.typing import NDArray

from recurra.serving.config import VaultConfig
from recurra.serving.memory import NTM
from recurra.serving.service import Service
from recurra.serving.session_store import SessionStore
from recurra.serving.sessions import Sessions
from recurra.serving.snapshot import Snapshot
from recurra.serving.tickets import run
from recurra.serving.vault_versions import Replica, Shard, VaultVersions
from recurra.serving.versions import Versions, WriteThrough
from recurra.tasks.base import Encoded


def sessions_of(
    service: Service, vault: Sequence[Shard], deployed: Callable[[str], bool] = lambda _: False
) -> Sessions | None:
    """The sessions of a service; None where its model cannot step or it has no store.

    Args:
        vault: Its shards.
        deployed: Whether a bundle is one of those that new sessions are given to.
    """
    store = service.sessions_store
    if store is None or not service.served.model.steppable:
        return None
    config = service.config.sessions
    layout = service.engine.layout
    digest = service.served.digest
    versions: Versions = WriteThrough(SessionStore(store, layout, digest, keep_s=6 * config.trust_s))
    adopt = _resetting(service, deployed) if config.on_update == "reset" else lambda _: None
    sessions = Sessions(versions, digest, config, service.metrics, adopt)
    if vault:
        steps = (config.vault or VaultConfig()).journal_steps
        replica = Replica(layout, digest, _replaying(service), sessions.expires_s, trace_steps(service), steps)
        sessions.versions = VaultVersions(vault, replica, versions)
    return sessions


def trace_steps(service: Service) -> int:
    """Steps of a session's trail; 0 for models that have nothing to show."""
    return service.config.sessions.trace_steps if service.served.model.config.cell == NTM else 0


def fingerprint(api_key: str | None) -> str:
    """What tells the sessions of one key from those of another, without being the key."""
    return hashlib.sha256(api_key.encode()).hexdigest()[:12] if api_key else ""


def _resetting(service: Service, deployed: Callable[[str], bool]) -> Callable[[Snapshot], Snapshot | None]:
    served = service.served

    def reset(snapshot: Snapshot) -> Snapshot | None:
        """The session at the start of this bundle; None where it goes on with a bundle that is deployed, or with one of a
        later deployment, whose replicas run already while ours are still being replaced."""
        if deployed(snapshot.digest) or snapshot.released_s > served.released_s:
            return None
        return replace(
            snapshot,
            digest=served.digest,
            released_s=served.released_s,
            pending=(),
            context=None,
            state=service.engine.initial_state,
            trail=None,
            journaled=0,
            reset=True,
        )

    return reset


def _replaying(service: Service) -> Any:
    async def replay(state: bytes, inputs: NDArray[Any]) -> bytes:
        """The state after inputs, read as any request's."""
        sequence = service.sequence(Encoded(inputs), state=state, outputs="none", keep="end")
        (result,) = await run(service.engine, [sequence])
        assert result.state is not None
        return result.state

    return replay
