"""Edit distance (Levenshtein 1966): what word and character error rates count."""

from __future__ import annotations

from collections.abc import Sequence


def edit_distance(truth: Sequence[object], guess: Sequence[object]) -> int:
    """Fewest insertions, deletions and substitutions that make one of the other."""
    above = list(range(len(guess) + 1))
    for row, right in enumerate(truth, 1):
        current = [row]
        for column, said in enumerate(guess, 1):
            current.append(min(above[column] + 1, current[-1] + 1, above[column - 1] + (right != said)))
        above = current
    return above[-1]


def error_counts(truth: str, guess: str) -> dict[str, int]:
    """Edits between words and between characters, and how many there are in the truth; spaces at the ends do not count."""
    truth, guess = truth.strip(), guess.strip()
    return {
        "word_edits": edit_distance(truth.split(), guess.split()),
        "words": len(truth.split()),
        "character_edits": edit_distance(truth, guess),
        "characters": len(truth),
    }
