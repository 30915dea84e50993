"""Byte-pair encoding over the bytes of UTF-8 (Sennrich, Haddow, Birch 2016, arXiv 1508.07909), by the `tokenizers` library.

A piece is written in the library's alphabet, which has a visible character for each byte: a merge is two pieces with a space
between them. The list of merges is all there is to know of an encoding.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any

from recurra.errors import ConfigError, DataError

BYTES = 256


def _alphabet() -> list[str]:
    """The character that stands for each byte: itself where it is visible in Latin-1, else one from 256 on, in order."""
    visible = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    hidden = iter(range(BYTES, 2 * BYTES))
    return [chr(byte if byte in visible else next(hidden)) for byte in range(BYTES)]


ALPHABET = _alphabet()
_BYTE_OF = {character: byte for byte, character in enumerate(ALPHABET)}


def learn_merges(texts: Iterable[str], count: int, min_count: int = 2) -> list[str]:
    """At most `count` merges, the most frequent pair first; a merge stays within a word and the space before it.

    Args:
        texts: What to count in.
        count: Merges at most; fewer where no pair is left that occurs `min_count` times.
        min_count: Rarer pairs are not merged.
    """
    library = _library()
    tokenizer = library.Tokenizer(library.models.BPE())
    tokenizer.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = library.trainers.BpeTrainer(
        vocab_size=BYTES + count,
        min_frequency=max(min_count, 1),
        initial_alphabet=ALPHABET,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return [" ".join(pair) for pair in json.loads(tokenizer.to_str())["model"]["merges"]]


class BytePairs:
    """Pieces 0 to 255 are the bytes, then one piece a merge.

    Args:
        merges: As `learn_merges` gives them.

    Raises:
        DataError: A merge is not of two pieces that stand before it.
    """

    def __init__(self, merges: Sequence[str]) -> None:
        self.merges = list(merges)
        self._pieces = {piece: index for index, piece in enumerate(ALPHABET)}
        for merge in self.merges:
            left, _, right = merge.partition(" ")
            if left not in self._pieces or right not in self._pieces:
                raise DataError(f"The subword vocabulary has a merge {merge!r} of pieces that it lacks.")
            self._pieces.setdefault(left + right, len(self._pieces))  # two merges may give the same piece
        self.bytes_of = [bytes(_BYTE_OF[character] for character in piece) for piece in self._pieces]
        """What each piece stands for."""

    @property
    def size(self) -> int:
        return len(self._pieces)

    def encode(self, text: str) -> list[int]:
        """Numbers of the pieces of a text, whose bytes are the text's."""
        pieces: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return pieces

    @cached_property
    def _tokenizer(self) -> Any:
        library = _library()
        pairs = [tuple(merge.split(" ")) for merge in self.merges]
        tokenizer = library.Tokenizer(library.models.BPE(vocab=self._pieces, merges=pairs))
        tokenizer.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
        return tokenizer


def _library() -> Any:
    """The `tokenizers` module, which is looked for when subwords are: most datasets have none."""
    try:
        return importlib.import_module("tokenizers")
    except ImportError as exc:
        raise ConfigError(
            "A vocabulary of subwords needs the library 'tokenizers', which is not installed. "
            "Run: pip install 'recurra[text]', or choose words or characters."
        ) from exc
