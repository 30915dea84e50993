"""Words that are already cut, as ids: one for each word, and the ids of its characters."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

from recurra.data.vocabulary import CharacterVocabulary, Ids, WordVocabulary, build_vocabulary


def build_word_vocabulary(sentences: Iterable[Sequence[str]], *, min_count: int = 1) -> WordVocabulary:
    """Lower-cased words as they stand, not cut any further; rarer ones become <unk>."""
    counts = Counter(word.lower() for words in sentences for word in words)
    kept = sorted(
        (word for word, count in counts.items() if count >= min_count), key=lambda word: (-counts[word], word)
    )
    return WordVocabulary(kept)


def build_character_vocabulary(sentences: Iterable[Sequence[str]], *, min_count: int = 1) -> CharacterVocabulary:
    """The characters of the words, in both cases."""
    vocabulary = build_vocabulary("characters", ("".join(words) for words in sentences), min_count=min_count)
    assert isinstance(vocabulary, CharacterVocabulary)
    return vocabulary


def spellings(vocabulary: CharacterVocabulary, words: Sequence[str], width: int) -> Ids:
    """[T, W] ids of each word's characters, then 0; of a longer word its first and its last ones."""
    ids = np.zeros((len(words), width), vocabulary.dtype)
    head = width - width // 2
    for row, word in enumerate(words):
        shown = word if len(word) <= width else word[:head] + word[len(word) - (width - head) :]
        ids[row, : len(shown)] = vocabulary.encode(shown)
    return ids
