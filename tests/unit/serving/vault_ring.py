"""A vault of real shards in one process: killed by being dropped, started again on the same store."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time

from recurra.serving.vault_copies import ShardLostError
from recurra.serving.vault_log import VaultLog
from recurra.serving.vault_record import Commit
from recurra.serving.vault_shard import ShardOptions, VaultShard
from recurra.storage.store import Store


class Link:
    """One shard as the others and replicas reach it; raises what Ray raises while there is nobody."""

    def __init__(self, ring: Ring, index: int) -> None:
        self._ring = ring
        self._index = index
        self.met = False

    @property
    def _shard(self) -> VaultShard:
        if (shard := self._ring.shards[self._index]) is None:
            raise ShardLostError(f"Shard {self._index} is dead.")
        return shard

    async def commit(self, commits):
        shard = self._shard
        answer = await shard.commit(commits)
        return self._alive(shard, answer)

    async def load(self, wanted):
        shard = self._shard
        return self._alive(shard, await shard.load(wanted))

    async def backup(self, shard, commits, flushed):
        return await self._shard.backup(shard, commits, flushed)

    async def backup_whole(self, shard, records):
        return await self._shard.backup_whole(shard, records)

    async def copies(self, shard):
        return await self._shard.copies(shard)

    async def flush(self):
        await self._shard.flush()

    async def meet(self):
        self.met = bool(self._shard)

    def _alive(self, shard: VaultShard, answer):
        """What a process says after its death is never heard."""
        if self._ring.shards[self._index] is not shard:
            raise ShardLostError(f"Shard {self._index} died before it answered.")
        return answer


class Ring:
    """All shards.

    Args:
        wall: Seconds since 1970, set by the test.
    """

    def __init__(self, store: Store, count: int = 2, **options) -> None:
        self.store = store
        self.count = count
        self.options = ShardOptions(**{"flush_s": 3600.0, **options})
        self.shards: list[VaultShard | None] = [None] * count
        self.links = [Link(self, index) for index in range(count)]
        self.wall = 1000.0

    async def start(self, *indices: int) -> None:
        for index in indices or range(self.count):
            alone = self.count == 1
            self.shards[index] = VaultShard(
                index,
                VaultLog(self.store, index),
                None if alone else self.links[index - 1],
                None if alone else self.links[(index + 1) % self.count],
                self.options,
                lambda: self.wall,
            )
        await asyncio.gather(*(self._start(self.shards[index]) for index in indices or range(self.count)))

    async def _start(self, shard: VaultShard) -> None:
        await shard.start()
        with contextlib.suppress(ShardLostError):  # the one before is dead, too
            await shard.settle()

    def kill(self, index: int) -> None:
        self.shards[index] = None


def commit(id: str, version: int, **facts) -> Commit:
    """A whole version, or an entry with `entry=...`."""
    settings = {"epoch": 0, "nonce": f"{id}-{version}", "expires_s": 1e12, "owner": "", **facts}
    if "entry" not in settings and "gone" not in settings:
        settings.setdefault("snapshot", f"{id} at {version}".encode())
    return Commit(id=id, version=version, **settings)


class VaultThread:
    """A ring on an event loop of its own, for replicas that each have theirs."""

    def __init__(self, store: Store, count: int = 2, **options) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()
        self.ring = Ring(store, count, **options)
        self.ring.wall = time.time()
        self.do(self.ring.start())
        self.shards = [Remote(self.loop, link) for link in self.ring.links]

    def do(self, work):
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(30)

    def close(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()


class Remote:
    """A shard as a replica on another event loop reaches it."""

    def __init__(self, loop: asyncio.AbstractEventLoop, link: Link) -> None:
        self._loop = loop
        self._link = link

    async def commit(self, commits):
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(self._link.commit(commits), self._loop))

    async def load(self, wanted):
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(self._link.load(wanted), self._loop))

    async def flush(self):
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(self._link.flush(), self._loop))

    async def meet(self):
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(self._link.meet(), self._loop))
