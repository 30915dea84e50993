"""Which node each shard of the vault lives on, so that a node that dies takes a record or its copy, never both."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any


def homes(nodes: Sequence[Mapping[str, Any]]) -> list[str]:
    """Ids of the nodes for shards, of those that `ray.nodes()` describes: alive, and with CPUs to offer.

    A head that takes no work has none. It is left out where two others are there: what goes on at them while it is away
    shall not wait for a shard of it.
    """
    alive = {node["NodeID"]: node["Resources"].get("CPU", 0) for node in nodes if node["Alive"]}
    workers = sorted(id for id, cpus in alive.items() if cpus)
    return workers if len(workers) > 1 else sorted(alive)


def node_of(index: int, shards: int, nodes: Sequence[str]) -> str:
    """The node of a shard: neighbours are apart where there are two nodes and an even number of shards, or more nodes."""
    turn = index % len(nodes)
    closes_the_ring = index == shards - 1 and index > 0 and turn == 0 and len(nodes) > 2
    return nodes[1] if closes_the_ring else nodes[turn]


def must_move(index: int, shards: int, nodes: Sequence[str], here: str, neighbours: Collection[str | None]) -> bool:
    """Whether a shard should go to its own node: it shares this one with a neighbour, as after the loss of a node, or this is
    no home any more, as when the workers came after the head.

    Another one stays, wherever it is: to move costs its sessions the start of a process.
    """
    return (here in neighbours or here not in nodes) and node_of(index, shards, nodes) != here
