"""Puts together how a service keeps its sessions."""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from numpy.typing import NDArray

from recurra.serving.config import VaultConfig
from recurra.serving.memory import NTM
from recurra.serving.service import Service
from recurra.serving.session_store import SessionStore
from recurra.serving.session_updates import Updates
from recurra.serving.sessions import Sessions
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
    replay = _replaying(service)
    updates = Updates(service, deployed, replay, trace_steps(service))
    sessions = Sessions(versions, digest, config, service.metrics, updates.adopt)
    if vault:
        steps = (config.vault or VaultConfig()).journal_steps
        replica = Replica(layout, digest, replay, sessions.expires_s, trace_steps(service), steps, service.histories)
        sessions.versions = VaultVersions(vault, replica, versions)
    return sessions


def trace_steps(service: Service) -> int:
    """Steps of a session's trail; 0 for models that have nothing to show."""
    return service.config.sessions.trace_steps if service.served.model.config.cell == NTM else 0


def fingerprint(api_key: str | None) -> str:
    """What tells the sessions of one key from those of another, without being the key."""
    return hashlib.sha256(api_key.encode()).hexdigest()[:12] if api_key else ""


def _replaying(service: Service) -> Callable[[bytes, NDArray[Any]], Awaitable[bytes]]:
    async def replay(state: bytes, inputs: NDArray[Any]) -> bytes:
        """The state after inputs, read as any request's."""
        sequence = service.sequence(Encoded(inputs), state=state, outputs="none", keep="end")
        (result,) = await run(service.engine, [sequence])
        assert result.state is not None
        return result.state

    return replay
