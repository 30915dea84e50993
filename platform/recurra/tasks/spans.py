"""Entities that tags mark: what is counted when taggers are compared."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Span(NamedTuple):
    """Words `start` to `end` - 1 are one entity of this kind."""

    kind: str
    start: int
    end: int


def spans_of(tags: Sequence[str]) -> list[Span]:
    """The entities of a sequence of IOB2 tags (`B-person`, `I-person`, `O`), as conlleval and seqeval count them.

    An `I-` that nothing of its kind stands before starts an entity, too. A tag without a prefix, such as a part of speech,
    is an entity of one word; `O` is none.
    """
    spans: list[Span] = []
    kind, start = None, 0
    for index, tag in enumerate([*tags, "O"]):
        prefix, dash, name = tag.partition("-")
        inside = prefix == "I" and bool(dash) and name == kind
        if kind is not None and not inside:
            spans.append(Span(kind, start, index))
            kind = None
        if tag == "O" or inside:
            continue
        if dash and prefix in ("B", "I"):
            kind, start = name, index
        else:
            spans.append(Span(tag, index, index + 1))
    return spans


def agreement(truth: Sequence[str], guess: Sequence[str]) -> tuple[int, int, int]:
    """(entities in both, with the same kind and borders; entities in the guess; entities in the truth)."""
    there, found = set(spans_of(truth)), set(spans_of(guess))
    return len(there & found), len(found), len(there)


def f1(hits: float, guesses: float, truths: float) -> float:
    """Harmonic mean of precision and recall; 0 where there is neither a guess nor a truth, as seqeval has it."""
    return 2 * hits / (guesses + truths) if guesses + truths else 0.0
