"""The second place of what is acknowledged, while there is nobody at it."""

import asyncio

from tests.unit.serving.vault_ring import commit

from recurra.serving.vault_copies import Copies, NextShard, ShardLostError


class Neighbour:
    """A shard that is away until it is said to be back."""

    def __init__(self) -> None:
        self.kept = Copies()
        self.away = True
        self.asked = 0

    async def backup(self, shard, commits, flushed):
        self.asked += 1
        if self.away:
            raise ShardLostError("It is dead.")
        return self.kept.keep(commits, flushed)

    async def backup_whole(self, shard, records):
        self.kept.keep_whole(records)


def test_a_neighbour_that_stays_away_is_asked_ever_more_rarely():
    """On a node that has died every try costs all sessions a time-out; and who is back must not wait for the next try."""

    async def run() -> None:
        neighbour, now_s = Neighbour(), 0.0
        shard = NextShard(0, neighbour, clock=lambda: now_s)

        async def whole(ids):
            return [(commit(id, 7), ()) for id in ids]

        kept = []
        for version in range(1, 201):
            now_s = version * 0.1
            kept.append(await shard.keep([commit("a", version)], whole))
        asked = neighbour.asked
        shard.flushed("b", 3)
        neighbour.away = False
        shard.is_back()

        assert not any(kept) and 5 <= asked <= 9
        assert await shard.keep([commit("a", 7, entry=b"e")], whole)
        assert [record.version for record, _ in neighbour.kept.all()] == [7]

    asyncio.run(run())
