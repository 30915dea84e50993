"""Where shards live, from what the cluster says of its nodes."""

import pytest

from recurra.serving.vault_actors import VaultSettings
from recurra.serving.vault_places import homes, must_move, node_of
from recurra.serving.vault_shard import ShardOptions


def node(id: str, cpus: float, alive: bool = True) -> dict:
    return {"NodeID": id, "Alive": alive, "Resources": {"CPU": cpus} if cpus else {}}


@pytest.mark.parametrize(("shards", "nodes"), [(2, 2), (4, 2), (3, 3), (4, 3), (7, 3), (5, 4), (2, 5)])
def test_neighbouring_shards_are_on_different_nodes(shards, nodes):
    """A node that dies takes a record or its copy, never both."""
    placed = [node_of(index, shards, [f"n{number}" for number in range(nodes)]) for index in range(shards)]

    assert all(placed[index] != placed[(index + 1) % shards] for index in range(shards))


@pytest.mark.parametrize(
    ("nodes", "wanted"),
    [
        ([node("b", 4), node("a", 4)], ["a", "b"]),
        ([node("head", 0), node("a", 4), node("b", 4)], ["a", "b"]),
        ([node("head", 0), node("a", 4), node("b", 4, alive=False)], ["a", "head"]),
        ([node("only", 0)], ["only"]),
    ],
)
def test_a_head_that_takes_no_work_has_a_shard_only_where_it_must(nodes, wanted):
    """Two processes on the one worker would be worse than one at the head."""
    assert homes(nodes) == wanted


@pytest.mark.parametrize(("shards", "nodes"), [(2, 2), (4, 2), (3, 3), (5, 3), (4, 4)])
def test_shards_that_were_thrown_together_part_again_and_then_stay(shards, nodes):
    """All on one node, as after the loss of the others: once these are back, each shard moves once at most."""
    names = [f"n{number}" for number in range(nodes)]
    for start in names:
        places = [start] * shards
        moved = []
        for _ in range(2):
            for index in range(shards):
                around = {places[index - 1], places[(index + 1) % shards]}
                if must_move(index, shards, names, places[index], around):
                    places[index] = node_of(index, shards, names)
                    moved.append(index)

        assert all(places[index] != places[(index + 1) % shards] for index in range(shards))
        assert len(moved) == len(set(moved)) < shards


def test_a_shard_that_shares_with_nobody_stays():
    """Even where another node would be its own by the rule: each move keeps sessions waiting."""
    assert not must_move(0, 2, ["a", "b"], "b", {"a"})
    assert not must_move(0, 2, ["a"], "a", {"a"})


def test_a_shard_leaves_a_head_when_the_workers_come():
    """Its sessions would else wait for the head to come back, should it die."""
    assert must_move(1, 2, ["a", "b"], "head", {"a"})
    assert not must_move(1, 2, ["a", "head"], "head", {"a"})


def test_shards_of_one_store_are_not_taken_for_those_of_another():
    """They are found by name, and live on for a while when their application is gone: what they hold belongs to their store."""
    here, there = (
        [
            VaultSettings("lm-lm", f"s3://{bucket}/sessions/lm/vault", 2, ShardOptions(), 60.0).actor_name(0)
            for _ in "ab"
        ]
        for bucket in ("one", "two")
    )

    assert here[0] == here[1] != there[0] == there[1]
