from __future__ import annotations

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
