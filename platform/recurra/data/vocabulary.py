"""Text <-> token ids: bytes, characters, subwords or words."""

from __future__ import annotations

import codecs
import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from recurra.data.schema import DType
from recurra.data.subwords import BYTES, BytePairs, learn_merges
from recurra.errors import ConfigError, DataError

Kind = Literal["bytes", "characters", "subwords", "words"]
Ids = NDArray[np.unsignedinteger[Any]]
_WORD = re.compile(r"\w+(?:['’]\w+)*|[^\w\s]")
_NO_SPACE_BEFORE = frozenset(".,;:!?%)]}»”’")
_NO_SPACE_AFTER = frozenset("([{«“‘#$€£")


class TextStream(ABC):
    """Turns ids into text as they come; what it has said is never taken back."""

    @abstractmethod
    def feed(self, ids: Iterable[int]) -> str:
        """The text that these ids complete; may be empty."""

    @abstractmethod
    def finish(self) -> str:
        """What is left, such as a replacement character for a broken one."""


class Vocabulary(ABC):
    """Ids 0 to `size` - 1. Equal vocabularies give equal `to_json()`."""

    kind: ClassVar[Kind]
    size: int
    bos: int
    """Marks the start of a document; `encode` never gives it."""

    @property
    def dtype(self) -> DType:
        """The narrowest type that holds every id."""
        return narrowest_unsigned(self.size - 1)

    @abstractmethod
    def encode(self, text: str) -> Ids:
        """[T] ids in `dtype`; empty text gives T = 0."""

    @abstractmethod
    def stream(self) -> TextStream:
        """A decoder for ids that come one by one."""

    @abstractmethod
    def to_json(self) -> dict[str, Any]:
        """Plain JSON for a dataset's metadata or a bundle."""

    def decode(self, ids: Iterable[int]) -> str:
        """Text of ids; markers such as the start of a document give nothing."""
        stream = self.stream()
        return stream.feed(ids) + stream.finish()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Vocabulary) and self.to_json() == other.to_json()

    def __hash__(self) -> int:
        return hash((self.kind, self.size))

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> Vocabulary:
        """What `to_json` described.

        Raises:
            DataError: It is no description of a vocabulary.
        """
        kind = value.get("kind")
        if kind == "bytes":
            return ByteVocabulary()
        if kind in ("characters", "words") and isinstance(value.get("entries"), list):
            if kind == "characters":
                return CharacterVocabulary(value["entries"])
            return WordVocabulary(value["entries"], lower_case=bool(value.get("lower_case", True)))
        if kind == "subwords" and isinstance(value.get("merges"), list):
            return SubwordVocabulary(value["merges"])
        raise DataError(f"A vocabulary of kind {kind!r} is unknown. It is one of: bytes, characters, subwords, words.")


class ByteVocabulary(Vocabulary):
    """The 256 bytes of UTF-8. Byte 0 marks the start of a document; in text it becomes U+FFFD."""

    kind = "bytes"

    def __init__(self) -> None:
        self.size = 256
        self.bos = 0

    def encode(self, text: str) -> Ids:
        data = text.replace("\0", "\ufffd").encode("utf-8", "replace")
        return np.frombuffer(data, np.uint8)

    def stream(self) -> TextStream:
        return _ByteStream(lambda index: bytes((index,)) if 0 < index < 256 else b"")

    def to_json(self) -> dict[str, Any]:
        return {"kind": "bytes"}


class _ListVocabulary(Vocabulary):
    """Ids 0 <pad>, 1 <unk>, 2 <bos>, then the entries."""

    pad = 0
    unk = 1
    bos = 2
    first = 3

    def __init__(self, entries: Sequence[str]) -> None:
        self._entries = list(entries)
        self._ids = {entry: index + self.first for index, entry in enumerate(self._entries)}
        if len(self._ids) < len(self._entries):
            raise DataError(f"The {self.kind} vocabulary has an entry twice. Give each entry once.")
        self.size = len(self._entries) + self.first

    @property
    def entries(self) -> tuple[str, ...]:
        """Entries without the markers, most frequent first."""
        return tuple(self._entries)

    def _encode_parts(self, parts: Iterable[str]) -> Ids:
        get, unk = self._ids.get, self.unk
        return np.array([get(part, unk) for part in parts], self.dtype)

    def _entry(self, index: int) -> str:
        """The entry's text; U+FFFD for <unk>, nothing for the other markers."""
        if index == self.unk:
            return "\ufffd"
        return self._entries[index - self.first] if self.first <= index < self.size else ""

    def to_json(self) -> dict[str, Any]:
        return {"kind": self.kind, "entries": list(self._entries)}


class CharacterVocabulary(_ListVocabulary):
    """One id for each character (Unicode code point)."""

    kind = "characters"

    def encode(self, text: str) -> Ids:
        return self._encode_parts(text)

    def stream(self) -> TextStream:
        return _EntryStream(self._entry)


class SubwordVocabulary(Vocabulary):
    """Pieces of words, the frequent ones whole: ids 0 <pad>, 1 <unk>, 2 <bos>, then bytes, then merges. No text is unknown."""

    kind = "subwords"
    bos = 2
    first = 3

    def __init__(self, merges: Sequence[str]) -> None:
        self._pairs = BytePairs(merges)
        self.size = self._pairs.size + self.first

    def encode(self, text: str) -> Ids:
        # A lone surrogate, which JSON can hold, is no text.
        pieces = self._pairs.encode(text.encode("utf-8", "replace").decode())
        return np.array([piece + self.first for piece in pieces], self.dtype)

    def stream(self) -> TextStream:
        return _ByteStream(lambda index: self._pairs.bytes_of[index - self.first] if index >= self.first else b"")

    def to_json(self) -> dict[str, Any]:
        return {"kind": "subwords", "merges": self._pairs.merges}


class WordVocabulary(_ListVocabulary):
    """One id for each word or punctuation mark; spaces are not kept."""

    kind = "words"

    def __init__(self, entries: Sequence[str], *, lower_case: bool = True) -> None:
        super().__init__(entries)
        self.lower_case = lower_case

    def encode(self, text: str) -> Ids:
        return self._encode_parts(cut_words(text, lower_case=self.lower_case))

    def encode_words(self, words: Sequence[str]) -> Ids:
        """[T] one id for each of the words, which are not cut any further."""
        return self._encode_parts(word.lower() if self.lower_case else word for word in words)

    def stream(self) -> TextStream:
        return _WordStream(self._entry)

    def to_json(self) -> dict[str, Any]:
        return {**super().to_json(), "lower_case": self.lower_case}


def cut_words(text: str, *, lower_case: bool = True) -> list[str]:
    """Words and single punctuation marks, in order."""
    return _WORD.findall(text.lower() if lower_case else text)


def build_vocabulary(
    kind: Kind, texts: Iterable[str], *, min_count: int = 1, max_size: int | None = None, lower_case: bool = True
) -> Vocabulary:
    """Count what the texts hold and keep the most frequent; ties go by code point, so the result is reproducible.

    Args:
        kind: `bytes` needs no texts.
        min_count: Rarer entries become <unk>; of subwords, rarer pairs are not merged.
        max_size: Ids in all, the three markers included (and of subwords the 256 bytes; 8192 by default).
        lower_case: Whether words are lower-cased.
    """
    if kind == "bytes":
        return ByteVocabulary()
    if max_size is not None and max_size < _ListVocabulary.first + 1:
        raise ConfigError(f"The vocabulary's max_size is {max_size}. Set it to 4 or more: three ids are markers.")
    if kind == "subwords":
        size = 8192 if max_size is None else max_size
        if size < BYTES + SubwordVocabulary.first:
            raise ConfigError(
                f"The vocabulary's max_size is {size}. Set it to {BYTES + SubwordVocabulary.first} or more: subwords have "
                "an id for each byte and three markers."
            )
        return SubwordVocabulary(learn_merges(texts, size - BYTES - SubwordVocabulary.first, min_count))
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(text if kind == "characters" else cut_words(text, lower_case=lower_case))
    kept = sorted((entry for entry, count in counts.items() if count >= min_count), key=lambda e: (-counts[e], e))
    if max_size is not None:
        kept = kept[: max_size - _ListVocabulary.first]
    return CharacterVocabulary(kept) if kind == "characters" else WordVocabulary(kept, lower_case=lower_case)


def narrowest_unsigned(largest: int) -> DType:
    """The narrowest unsigned type that holds `largest`."""
    return "uint8" if largest < 1 << 8 else "uint16" if largest < 1 << 16 else "uint32"


class _ByteStream(TextStream):
    """UTF-8 in pieces; never cuts a character in two."""

    def __init__(self, bytes_of: Callable[[int], bytes]) -> None:
        self._bytes_of = bytes_of
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, ids: Iterable[int]) -> str:
        return self._decoder.decode(b"".join(self._bytes_of(int(index)) for index in ids))

    def finish(self) -> str:
        return self._decoder.decode(b"", final=True)


class _EntryStream(TextStream):
    def __init__(self, entry: Any) -> None:
        self._entry = entry

    def feed(self, ids: Iterable[int]) -> str:
        return "".join(self._entry(int(index)) for index in ids)

    def finish(self) -> str:
        return ""


class _WordStream(TextStream):
    """Words with a space between them, but none before a comma or after an opening bracket."""

    def __init__(self, entry: Any) -> None:
        self._entry = entry
        self._last = ""

    def feed(self, ids: Iterable[int]) -> str:
        said = []
        for index in ids:
            word = self._entry(int(index))
            if not word:
                continue
            if self._last and word not in _NO_SPACE_BEFORE and self._last not in _NO_SPACE_AFTER:
                said.append(" ")
            said.append(word)
            self._last = word
        return "".join(said)

    def finish(self) -> str:
        return ""
