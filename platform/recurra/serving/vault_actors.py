"""The vault on Ray: each shard a named, detached actor that outlives replicas and is started again when its process dies.

Neighbouring shards are put on different nodes where there are several, also when the nodes come later (vault_places.py).
Whoever needs a shard starts it if it does not run: replicas, and the other shards.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import ActorUnavailableError, RayActorError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from recurra.errors import ClusterError, StorageError
from recurra.serving.vault_copies import ShardLostError, Whole
from recurra.serving.vault_log import VaultLog
from recurra.serving.vault_places import homes, must_move, node_of
from recurra.serving.vault_record import Commit, Loaded
from recurra.serving.vault_shard import ShardOptions, VaultShard
from recurra.storage.url import open_store
from recurra.telemetry.fleet import SOME_MEMORY

log = logging.getLogger(__name__)

NAMESPACE = "recurra"
OPEN_CALLS = 1000
LOOK_S = 10.0
"""Between two looks at where the neighbours are."""


@dataclass(frozen=True)
class VaultSettings:
    """What a shard is started with; no secret is in it."""

    name: str
    """Of the application."""
    url: str
    """Of the vault's prefix in the object store."""
    shards: int
    options: ShardOptions
    idle_s: float

    def actor_name(self, index: int) -> str:
        """Of a shard. The store is in it: shards outlive their application for a while, and one that comes again with
        another store must not find them."""
        return f"recurra-vault-{self.name}-{hashlib.sha256(self.url.encode()).hexdigest()[:8]}-{index}"


def vault_shards(settings: VaultSettings) -> list[ActorShard]:
    """All shards of a vault, as replicas and shards reach them. They are started when they are first asked."""
    return [ActorShard(settings, index) for index in range(settings.shards)]


class ActorShard:
    """One shard, wherever it runs; implements `vault_versions.Shard` and `vault_shard.Peer`."""

    def __init__(self, settings: VaultSettings, index: int) -> None:
        self._settings = settings
        self._index = index
        self._handle: Any = None
        self._finding = asyncio.Lock()

    async def commit(self, commits: list[Commit]) -> list[str]:
        handle = await self._found()
        try:
            return list(await handle.commit.remote(commits))
        except RayActorError as exc:
            raise self._lost(exc) from exc

    async def load(self, wanted: list[tuple[str, int, bool]]) -> list[Loaded | None]:
        handle = await self._found()
        try:
            return list(await handle.load.remote(wanted))
        except RayActorError as exc:
            raise self._lost(exc) from exc

    async def backup(self, shard: int, commits: list[Commit], flushed: list[tuple[str, int]]) -> list[str]:
        handle = await self._found()
        try:
            return list(await handle.backup.remote(shard, commits, flushed))
        except RayActorError as exc:
            raise self._lost(exc) from exc

    async def backup_whole(self, shard: int, records: list[Whole]) -> None:
        handle = await self._found()
        try:
            await handle.backup_whole.remote(shard, records)
        except RayActorError as exc:
            raise self._lost(exc) from exc

    async def copies(self, shard: int) -> list[Whole]:
        handle = await self._found()
        try:
            return list(await handle.copies.remote(shard))
        except RayActorError as exc:
            raise self._lost(exc) from exc

    async def flush(self) -> None:
        """Of a shard that runs: one that does not has nothing to write, and is not started for this."""
        if (handle := self._handle or await self._running()) is None:
            return
        try:
            await handle.flush.remote()
        except RayActorError as exc:
            raise self._lost(exc) from exc

    async def meet(self) -> None:
        """See `vault_versions.Shard`."""
        await self._found()

    async def node(self) -> str | None:
        """Id of the node that it runs on; None while it does not. It is not started for this."""
        try:
            handle = await self._running()
            return str(await handle.node.remote()) if handle is not None else None
        except RayActorError:
            return None

    async def _running(self) -> Any | None:
        """A handle of it; None where it does not run."""
        try:
            return await asyncio.to_thread(ray.get_actor, self._settings.actor_name(self._index), NAMESPACE)
        except ValueError:
            return None

    async def _found(self) -> Any:
        if self._handle is None:
            async with self._finding:
                if self._handle is None:
                    try:
                        self._handle = await asyncio.to_thread(_actor, self._settings, self._index)
                    except (RayActorError, ValueError) as exc:  # it ended between being found and being asked
                        raise self._lost(exc) from exc
        return self._handle

    def _lost(self, exc: Exception) -> ShardLostError:
        if not isinstance(exc, ActorUnavailableError):  # it will not come back under this handle
            self._handle = None
        return ShardLostError(f"Shard {self._index} of vault '{self._settings.name}' is away: {type(exc).__name__}.")


class ShardActor:
    """The process of one shard; its methods are those of `VaultShard`, which starts with the first of them."""

    def __init__(self, settings: VaultSettings, index: int) -> None:
        self._settings = settings
        self._index = index
        self._shard: VaultShard | None = None
        self._starting = asyncio.Lock()
        self._tasks: list[asyncio.Task[None]] = []
        self._asked_s = self._looked_s = time.monotonic()

    async def commit(self, commits: list[Commit]) -> list[str]:
        self._asked_s = time.monotonic()
        return await (await self._started()).commit(commits)

    async def load(self, wanted: list[tuple[str, int, bool]]) -> list[Loaded | None]:
        self._asked_s = time.monotonic()
        return await (await self._started()).load(wanted)

    async def backup(self, shard: int, commits: list[Commit], flushed: list[tuple[str, int]]) -> list[str]:
        self._asked_s = time.monotonic()
        return await (await self._started()).backup(shard, commits, flushed)

    async def backup_whole(self, shard: int, records: list[Whole]) -> None:
        await (await self._started()).backup_whole(shard, records)

    async def copies(self, shard: int) -> list[Whole]:
        return await (await self._started()).copies(shard)

    async def flush(self) -> None:
        await (await self._started()).flush()

    async def held(self) -> dict[str, int]:
        """See `VaultShard.held`."""
        return (await self._started()).held

    async def settled(self) -> None:
        """Waits until the vault may lose another process: see `VaultShard.settle`."""
        await (await self._started()).settled.wait()

    async def pid(self) -> int:
        """Of this process."""
        return os.getpid()

    async def node(self) -> str:
        """See `ActorShard.node`."""
        return str(ray.get_runtime_context().get_node_id())

    async def _started(self) -> VaultShard:
        """The shard; its recovery goes on in the background, and its own methods wait for it where they must."""
        if self._shard is None:
            async with self._starting:
                if self._shard is None:
                    store = await asyncio.to_thread(open_store, self._settings.url)
                    others = vault_shards(self._settings)
                    count = self._settings.shards
                    before, after = others[self._index - 1], others[(self._index + 1) % count]
                    alone = count == 1
                    self._shard = VaultShard(
                        self._index,
                        VaultLog(store, self._index),
                        None if alone else before,
                        None if alone else after,
                        self._settings.options,
                    )
                    self._tasks = [asyncio.create_task(self._live(self._shard))]
        return self._shard

    async def _live(self, shard: VaultShard) -> None:
        await self._insist(shard.start)
        self._tasks += [asyncio.create_task(shard.run()), asyncio.create_task(self._insist(shard.settle))]
        while not await self._is_over(shard):
            await asyncio.sleep(min(5.0, self._settings.idle_s))
        ray.kill(ray.get_actor(self._settings.actor_name(self._index), NAMESPACE), no_restart=True)

    async def _insist(self, work: Callable[[], Awaitable[None]]) -> None:
        while True:
            try:
                return await work()
            except Exception as exc:
                log.warning(
                    "Shard %d of vault '%s' is not whole yet, and tries again: %r",
                    self._index,
                    self._settings.name,
                    exc,
                    exc_info=not isinstance(exc, StorageError),
                )
                await asyncio.sleep(1.0)

    async def _is_over(self, shard: VaultShard) -> bool:
        """Whether this process is to end, with everything in the log: nobody asks for it, or it lives on the wrong node."""
        now_s = time.monotonic()
        if now_s - self._asked_s < self._settings.idle_s:
            if now_s - self._looked_s < LOOK_S or not await self._is_misplaced():
                return False
            log.info("Shard %d of vault '%s' moves away from its neighbour.", self._index, self._settings.name)
        try:
            await shard.flush()
        except StorageError as exc:
            log.warning("Shard %d of vault '%s' cannot leave: %s", self._index, self._settings.name, exc)
            return False
        return True

    async def _is_misplaced(self) -> bool:
        shards = self._settings.shards
        self._looked_s = time.monotonic()
        neighbours = {(self._index - 1) % shards, (self._index + 1) % shards} - {self._index}
        try:
            async with asyncio.timeout(LOOK_S):
                nodes = homes(await asyncio.to_thread(ray.nodes))
                there = await asyncio.gather(*(ActorShard(self._settings, index).node() for index in neighbours))
                return must_move(self._index, shards, nodes, await self.node(), there)
        except TimeoutError:
            return False  # a neighbour is being started again, maybe elsewhere


def _actor(settings: VaultSettings, index: int) -> Any:
    if not ray.is_initialized():
        raise ClusterError("The vault needs a Ray cluster. Set serve.sessions.vault to null to do without it.")
    node = node_of(index, settings.shards, homes(ray.nodes()))
    return (
        ray.remote(ShardActor)
        .options(
            name=settings.actor_name(index),
            namespace=NAMESPACE,
            lifetime="detached",
            get_if_exists=True,
            num_cpus=0,
            memory=SOME_MEMORY,
            max_restarts=-1,
            max_task_retries=0,
            max_concurrency=OPEN_CALLS,
            scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=True),
        )
        .remote(settings, index)
    )
