"""The vault without a cluster: what is acknowledged survives any one process, and stale owners are refused."""

import asyncio
import random

import pytest
from tests.unit.serving.vault_ring import Ring, commit

from recurra.errors import NotFoundError, StorageError
from recurra.serving.vault_log import VaultLog, agreed_shards
from recurra.serving.vault_record import record_of
from recurra.serving.vault_shard import OVER_BUDGET, STALE, STORED
from recurra.storage.url import open_store


@pytest.fixture
def store(tmp_path):
    return open_store((tmp_path / "vault").as_uri())


def segments(store) -> list[str]:
    return [info.key for info in store.list()]


async def seen(ring: Ring, id: str, shard: int = 0) -> tuple[int, bytes | None, tuple[bytes, ...]] | None:
    (loaded,) = await ring.shards[shard].load([(id, 0, False)])
    return None if loaded is None else (loaded.version, loaded.snapshot, loaded.journal)


def test_a_version_is_compared_and_set(store):
    """Of two replicas that go on from one version one is refused; the same commit again is no second version."""

    async def talk():
        ring = Ring(store)
        await ring.start()
        first = commit("a", 1)
        answers = await ring.shards[0].commit([first, first, commit("a", 1, nonce="other"), commit("a", 3, epoch=1)])
        answers += await ring.shards[0].commit(
            [commit("a", 2), commit("a", 2, nonce="slow"), commit("b", 7, entry=b"x")]
        )
        return answers, await seen(ring, "a")

    answers, found = asyncio.run(talk())
    assert answers == [STORED, STORED, STALE, STALE, STORED, STALE, STALE]
    assert found == (2, b"a at 2", ())


def test_a_stale_owner_is_refused_by_its_lease(store):
    """Who took the session over may write; who had it before may not, whatever version it believes in."""

    async def talk():
        ring = Ring(store)
        await ring.start()
        shard = ring.shards[0]
        await shard.commit([commit("a", 1)])
        (loaded,) = await shard.load([("a", 1, True)])
        stale = await shard.commit([commit("a", 2, epoch=loaded.epoch - 1)])
        owner = await shard.commit([commit("a", 2, epoch=loaded.epoch)])
        return loaded, stale, owner

    loaded, stale, owner = asyncio.run(talk())
    assert (loaded.version, loaded.epoch, loaded.snapshot) == (1, 1, None)
    assert (stale, owner) == ([STALE], [STORED])


@pytest.mark.parametrize("count", [2, 3])
def test_a_dead_shard_comes_back_with_all_that_was_acknowledged(store, count):
    """Its neighbour has copies of what no flush had reached yet; journal entries come back in their order."""

    async def talk():
        ring = Ring(store, count)
        await ring.start()
        await ring.shards[0].commit([commit("old", 1)])
        await ring.shards[0].flush()
        await ring.shards[0].commit([commit("old", 2), commit("new", 1)])
        for version in range(2, 6):
            await ring.shards[0].commit([commit("new", version, entry=b"e%d" % version)])
        before = segments(store)
        ring.kill(0)
        await ring.start(0)
        return before, await seen(ring, "old"), await seen(ring, "new"), ring.shards[0].held

    before, old, new, held = asyncio.run(talk())
    assert len(before) == 1  # the second round was in memory only
    assert old == (2, b"old at 2", ())
    assert new == (5, b"new at 1", (b"e2", b"e3", b"e4", b"e5"))
    assert held["unflushed"] == 0


def test_while_the_copies_have_no_home_the_store_has_them(store):
    """One shard alone acknowledges only what is in the log: then it may die, too."""

    async def talk():
        ring = Ring(store)
        await ring.start()
        await ring.shards[0].commit([commit("a", 1)])
        ring.kill(1)
        assert await ring.shards[0].commit([commit("a", 2), commit("b", 1)]) == [STORED, STORED]
        ring.kill(0)
        await ring.start()
        return await seen(ring, "a"), await seen(ring, "b")

    assert asyncio.run(talk()) == ((2, b"a at 2", ()), (1, b"b at 1", ()))


def test_a_neighbour_that_comes_back_gets_whole_records_again(store):
    """An entry alone would leave a gap in its copies."""

    async def talk():
        ring = Ring(store)
        await ring.start()
        await ring.shards[0].commit([commit("a", 1)])
        ring.kill(1)
        await ring.start(1)
        assert await ring.shards[0].commit([commit("a", 2, entry=b"e2")]) == [STORED]
        assert len(segments(store)) == 1  # the newcomer made it flush; the entry went to the copies
        ring.kill(0)
        await ring.start(0)
        return await seen(ring, "a")

    assert asyncio.run(talk()) == (2, b"a at 1", (b"e2",))


def test_both_at_once_lose_what_was_not_flushed_and_the_owner_may_bring_it_back(store):
    """The bound of `flush_s`; a replica that still has the newer version is its owner and is believed."""

    async def talk():
        ring = Ring(store)
        await ring.start()
        await ring.shards[0].commit([commit("a", 1)])
        await ring.shards[0].flush()
        for version in (2, 3):
            await ring.shards[0].commit([commit("a", version)])
        ring.kill(0)
        ring.kill(1)
        await ring.start()
        lost = await seen(ring, "a")
        entry = await ring.shards[0].commit([commit("a", 4, entry=b"e4")])
        whole = await ring.shards[0].commit([commit("a", 4)])
        return lost, entry, whole, await seen(ring, "a")

    lost, entry, whole, found = asyncio.run(talk())
    assert lost == (1, b"a at 1", ())
    assert (entry, whole) == ([STALE], [STORED])
    assert found == (4, b"a at 4", ())


def test_nothing_is_acknowledged_that_is_in_one_place_only(store, tmp_path):
    """Neither the neighbour nor the store: the replica hears so, and sends it again later."""

    async def talk():
        ring = Ring(store)
        await ring.start()
        await ring.shards[0].commit([commit("a", 1)])
        ring.kill(1)
        folder = tmp_path / "vault"
        assert not folder.exists()  # nothing was flushed yet
        folder.write_text("a file where the folder should be")
        with pytest.raises(StorageError):
            await ring.shards[0].commit([commit("a", 2)])
        folder.unlink()
        assert await ring.shards[0].commit([commit("a", 2)]) == [STORED]
        ring.kill(0)
        await ring.start()
        return await seen(ring, "a")

    assert asyncio.run(talk()) == (2, b"a at 2", ())


def test_states_beyond_the_memory_are_read_from_the_log(store):
    """The budget bounds memory and not the number of sessions; entries go on from a cold state."""

    async def talk():
        ring = Ring(store, memory_bytes=1 << 16)
        await ring.start()
        shard = ring.shards[0]
        for number in range(40):
            await shard.commit([commit(f"s{number}", 1, snapshot=bytes([number]) * 4000)])
        await shard.tend()
        used = shard.held["bytes"]
        cold = [await seen(ring, f"s{number}") for number in range(40)]
        await shard.tend()
        await shard.commit([commit("s0", 2, entry=b"e2")])
        ring.kill(0)
        await ring.start(0)
        return used, cold, await seen(ring, "s0")

    used, cold, gone_on = asyncio.run(talk())
    assert used <= 1 << 16
    assert cold == [(1, bytes([number]) * 4000, ()) for number in range(40)]
    assert gone_on == (2, bytes(4000), (b"e2",))


def test_what_expires_says_so_and_is_forgotten_at_last(store):
    """410 for an hour, then nothing; the log is cleared of it."""

    async def talk():
        ring = Ring(store)
        await ring.start()
        shard = ring.shards[0]
        await shard.commit([commit("a", 1, expires_s=1010.0), commit("b", 1)])
        assert await shard.tend() == 0
        ring.wall = 1011.0
        assert await shard.tend() == 1
        (loaded,) = await shard.load([("a", 0, True)])
        refused = await shard.commit([commit("a", 2)])
        again = await shard.commit([commit("a", 3, epoch=loaded.epoch, expires_s=1012.0)])  # a sequence may start anew
        ring.wall = 1e5
        assert await shard.tend() == 1
        ring.wall = 2e5
        await shard.tend()
        return loaded, refused, again, await seen(ring, "a"), shard.held["sessions"]

    loaded, refused, again, found, sessions = asyncio.run(talk())
    assert (loaded.gone, loaded.snapshot, loaded.version) == ("expired", None, 2)
    assert (refused, again) == ([STALE], [STORED])
    assert found is None and sessions == 1


def test_segments_do_not_pile_up(store):
    """Each flush is one object; those that nothing needs any more are deleted, and old ones are written anew."""

    async def talk():
        ring = Ring(store)
        await ring.start()
        shard = ring.shards[0]
        await shard.commit([commit("still", 1)])
        await shard.tend()
        for version in range(1, 200):
            await shard.commit([commit("busy", version), commit(f"once{version}", 1)])
            await shard.tend()
        ring.kill(0)
        await ring.start(0)
        return [await seen(ring, id) for id in ("still", "busy", "once1", "once199")]

    found = asyncio.run(talk())
    assert found == [
        (1, b"still at 1", ()),
        (199, b"busy at 199", ()),
        (1, b"once1 at 1", ()),
        (1, b"once199 at 1", ()),
    ]
    assert len(segments(store)) < 70


def test_a_key_has_its_budget(store):
    """Another key's sessions do not count, and room comes back when a session ends."""

    async def talk():
        ring = Ring(store, bytes_per_key=10_000)
        await ring.start()
        shard = ring.shards[0]
        big = {"snapshot": bytes(4000), "owner": "k1"}
        answers = await shard.commit([commit("a", 1, **big), commit("b", 1, **big), commit("c", 1, **big)])
        answers += await shard.commit(
            [commit("d", 1, **{**big, "owner": "k2"}), commit("a", 2, gone="deleted", owner="k1")]
        )
        return answers + await shard.commit([commit("c", 1, **big)])

    assert asyncio.run(talk()) == [STORED, STORED, OVER_BUDGET, STORED, STORED, STORED]


def test_the_number_of_shards_is_fixed_by_the_first(store):
    """Sessions are spread by hash: another number would look for them elsewhere."""
    assert [agreed_shards(store, 3), agreed_shards(store, 5)] == [3, 3]


def test_a_segment_that_a_dying_process_wrote_is_not_overwritten(store):
    """Two processes of one shard, one of them dying, never write one key."""
    one, other = VaultLog(store, 0), VaultLog(store, 0)
    one.open(), other.open()
    places = [log.append([record_of(commit(id, 1))])[0] for log, id in ((one, "a"), (other, "b"))]

    assert places[0].segment != places[1].segment
    assert sorted(VaultLog(store, 0).open()) == ["a", "b"]


@pytest.mark.parametrize("seed", range(6))
def test_no_order_of_single_deaths_loses_or_doubles_anything(tmp_path, seed):
    """Law: commits, flushes and deaths of one shard at a time in any order; each acknowledged version is there at the end."""
    random_ = random.Random(seed)

    async def talk():
        ring = Ring(open_store((tmp_path / "v").as_uri()), 3, memory_bytes=1 << 16)
        await ring.start()
        versions = {f"s{number}": 0 for number in range(12)}
        for _ in range(150):
            action = random_.random()
            if action < 0.1:
                victim = random_.randrange(3)
                ring.kill(victim)
                if random_.random() < 0.5:  # life goes on for the neighbour before the victim is back
                    id = random_.choice(list(versions))
                    if victim != 0:
                        versions[id] += 1
                        assert await ring.links[0].commit([commit(id, versions[id])]) == [STORED]
                await ring.start(victim)
            elif action < 0.2:
                await ring.shards[random_.randrange(3)].tend()
            else:
                id = random_.choice(list(versions))
                versions[id] += 1
                kind = {"entry": b"e%d" % versions[id]} if versions[id] > 1 and random_.random() < 0.6 else {}
                assert await ring.links[0].commit([commit(id, versions[id], **kind)]) == [STORED]
        return versions, {id: await seen(ring, id) for id in versions}

    versions, found = asyncio.run(talk())
    for id, version in versions.items():
        if version:
            number, snapshot, journal = found[id]
            base = int(snapshot.decode().rpartition(" ")[2])
            assert number == version
            assert list(journal) == [b"e%d" % n for n in range(base + 1, version + 1)]


def test_a_shard_that_failed_to_start_tries_again_and_loses_nothing(store, monkeypatch):
    """A segment that is listed and cannot be read is no empty one. Whoever asks the shard to flush waits until it knows what."""

    def not_found(*_):
        raise NotFoundError("the volume is away")

    async def talk():
        ring = Ring(store)
        await ring.start()
        await ring.shards[0].commit([commit("a", 1)])
        await ring.shards[0].flush()
        await ring.shards[0].commit([commit("b", 1)])
        ring.kill(0)
        with monkeypatch.context() as patch:
            patch.setattr(type(store), "read", not_found)
            with pytest.raises(NotFoundError):
                await ring.start(0)
        shard = ring.shards[0]
        flushing = asyncio.create_task(shard.flush())
        await asyncio.sleep(0.01)
        assert not flushing.done()
        await shard.start()
        await flushing
        assert not shard.settled.is_set()
        await shard.settle()
        assert shard.settled.is_set()
        return await seen(ring, "a"), await seen(ring, "b")

    assert asyncio.run(talk()) == ((1, b"a at 1", ()), (1, b"b at 1", ()))
    assert sorted(VaultLog(store, 0).open()) == ["a", "b"]
