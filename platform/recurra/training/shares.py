"""Which rank writes which tensors of a checkpoint, and in which pieces."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from recurra.training.ranks import Ranks

PIECE_BYTES = 16 << 20
"""Of one file, a larger tensor apart: what an interrupted upload sends again, and what is in memory twice."""


def share_of(tensors: dict[str, Tensor], ranks: Ranks) -> dict[str, Tensor]:
    """This rank's tensors: largest first, each goes to the rank that has least so far."""
    loads = [0] * ranks.size
    share = {}
    for name, value in sorted(tensors.items(), key=lambda item: (-item[1].nbytes, item[0])):
        rank = loads.index(min(loads))
        loads[rank] += value.nbytes
        if rank == ranks.rank:
            share[name] = value
    return share


def pieces_of(tensors: dict[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """The tensors in groups of at most `PIECE_BYTES` (or of one tensor), in their order."""
    piece: dict[str, Tensor] = {}
    for name, value in tensors.items():
        if piece and sum(held.nbytes for held in piece.values()) + value.nbytes > PIECE_BYTES:
            yield piece
            piece = {}
        piece[name] = value
    if piece:
        yield piece
