from __future__ import annotations

import json
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recurra.data.vocabulary import (
    ByteVocabulary,
    CharacterVocabulary,
    Vocabulary,
    WordVocabulary,
    build_vocabulary,
    narrowest_unsigned,
)
from recurra.errors import ConfigError, DataError

TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))


@given(TEXTS)
def test_bytes_and_characters_give_back_any_text(text):
    """What the model was given can always be shown again."""
    for vocabulary in (ByteVocabulary(), build_vocabulary("characters", [text])):
        assert vocabulary.decode(vocabulary.encode(text).tolist()) == text


@given(TEXTS)
def test_no_text_holds_the_start_of_a_document(text):
    """bos in the middle of a text would cut the document in two."""
    for vocabulary in (ByteVocabulary(), build_vocabulary("characters", [text]), build_vocabulary("words", [text])):
        assert vocabulary.bos not in vocabulary.encode(text).tolist()


def test_a_nul_byte_becomes_a_replacement_character():
    """Byte 0 has another meaning; other text formats treat NUL the same way."""
    assert ByteVocabulary().decode(ByteVocabulary().encode("a\0b")) == "a\ufffdb"


@given(TEXTS)
def test_bytes_that_come_one_by_one_say_the_same(text):
    """A streamed answer shows no half characters and never takes anything back."""
    stream = ByteVocabulary().stream()

    said = [stream.feed([index]) for index in ByteVocabulary().encode(text).tolist()]

    assert "".join(said) + stream.finish() == text
    assert "\ufffd" not in "".join(said) or "\ufffd" in text


def test_a_character_that_never_ends_is_replaced_at_the_end():
    """A model may stop in the middle of a character."""
    stream = ByteVocabulary().stream()

    assert stream.feed([0xE2, 0x82]) == ""
    assert stream.finish() == "\ufffd"


def test_words_read_like_text_again():
    """A completion is shown to people."""
    vocabulary = build_vocabulary("words", ["It's (really) fine, thanks!"], lower_case=False)

    assert vocabulary.decode(vocabulary.encode("It's (really) fine, thanks!")) == "It's (really) fine, thanks!"


def test_an_unknown_word_is_unk():
    vocabulary = build_vocabulary("words", ["one two"])

    assert vocabulary.encode("One three two").tolist() == [3, 1, 4]


def test_the_most_frequent_stay_and_ties_go_by_code_point():
    """The same corpus gives the same ids on every machine."""
    vocabulary = build_vocabulary("words", ["b a c c", "b a d"], min_count=2, max_size=5)

    assert isinstance(vocabulary, WordVocabulary)
    assert vocabulary.entries == ("a", "b")
    assert vocabulary.size == 5


@pytest.mark.parametrize("kind", ["bytes", "characters", "words"])
def test_json_gives_back_the_same_vocabulary(kind):
    """It travels through manifests and bundles."""
    vocabulary = build_vocabulary(kind, ["Some text, here."], lower_case=False)

    again = Vocabulary.from_json(vocabulary.to_json())

    assert again == vocabulary
    assert again.encode("Some more, here.").tolist() == vocabulary.encode("Some more, here.").tolist()


def test_ids_come_in_the_narrowest_type():
    """A byte a token instead of eight is an eighth of the network."""
    assert ByteVocabulary().dtype == "uint8"
    assert ByteVocabulary().encode("a").dtype == "uint8"
    assert CharacterVocabulary([chr(i) for i in range(1000, 1253)]).dtype == "uint8"
    assert CharacterVocabulary([chr(i) for i in range(1000, 1254)]).dtype == "uint16"
    assert narrowest_unsigned(1 << 16) == "uint32"


def test_markers_say_nothing():
    """Padding and bos are not shown; what is unknown is."""
    assert CharacterVocabulary(["a"]).decode([2, 3, 0, 1, 99]) == "a\ufffd"


def test_a_description_of_another_kind_is_refused():
    with pytest.raises(DataError, match="kind 'sentencepiece' is unknown"):
        Vocabulary.from_json({"kind": "sentencepiece"})


def test_an_entry_twice_is_refused():
    """Two ids for one word would split its statistics."""
    with pytest.raises(DataError, match="has an entry twice"):
        WordVocabulary(["a", "a"])


def test_no_room_for_an_entry_is_refused():
    with pytest.raises(ConfigError, match="max_size is 3"):
        build_vocabulary("words", ["a"], max_size=3)


CORPUS = ["low lower lowest newer wider", "the lower the newer", "größer größte"] * 3


def test_subwords_keep_frequent_words_whole_and_lose_no_text():
    """Byte-pair encoding: `lower` is one piece with the space before it; what was never seen falls into bytes."""
    vocabulary = build_vocabulary("subwords", CORPUS, max_size=300)
    assert len(vocabulary.encode(" lower")) == 1
    for text in ("low lower\n newest größer", "naïve 日本 🙂", "", " two  spaces "):
        assert vocabulary.decode(vocabulary.encode(text)) == text
    assert 1 not in vocabulary.encode("日本").tolist()


def test_subword_merges_by_hand():
    """The most frequent pair first: `a b` is met four times, then `ab ab` twice."""
    vocabulary = build_vocabulary("subwords", ["abab", "abab"], max_size=256 + 3 + 2)
    assert vocabulary.to_json() == {"kind": "subwords", "merges": ["a b", "ab ab"]}
    assert vocabulary.encode("abab").tolist() == [256 + 3 + 1]
    assert vocabulary.encode("aba").tolist() == [256 + 3, ord("a") + 3]
    assert (vocabulary.size, vocabulary.dtype, vocabulary.bos) == (261, "uint16", 2)


def test_subwords_read_back_are_the_same():
    """The manifest and the bundle keep the merges alone."""
    vocabulary = build_vocabulary("subwords", CORPUS, max_size=300)
    again = Vocabulary.from_json(json.loads(json.dumps(vocabulary.to_json())))
    assert again == vocabulary
    assert again.encode(CORPUS[2]).tolist() == vocabulary.encode(CORPUS[2]).tolist()
    assert build_vocabulary("subwords", CORPUS, max_size=300) == vocabulary


def test_a_stream_of_subwords_never_cuts_a_character_in_two():
    """`ß` is two bytes, and each can be a token of its own."""
    vocabulary = build_vocabulary("subwords", ["ab"], max_size=260)
    stream = vocabulary.stream()
    said = [stream.feed([index]) for index in [vocabulary.bos, *vocabulary.encode("aß").tolist()]]
    assert said == ["", "a", "", "ß"]


def test_too_small_a_subword_vocabulary_is_refused():
    """Below 259 ids not even the bytes fit."""
    with pytest.raises(ConfigError, match="max_size is 100. Set it to 259 or more"):
        build_vocabulary("subwords", CORPUS, max_size=100)


def test_broken_merges_are_refused():
    """A manifest that was altered."""
    with pytest.raises(DataError, match="merge 'ab c' of pieces that it lacks"):
        Vocabulary.from_json({"kind": "subwords", "merges": ["ab c"]})


def test_without_the_library_the_error_says_what_to_install(monkeypatch):
    """It is an extra: most datasets have no subwords."""
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(ConfigError, match=r"pip install 'recurra\[text\]'"):
        build_vocabulary("subwords", CORPUS)
