import numpy as np

from recurra.data.words import build_character_vocabulary, build_word_vocabulary, spellings

SENTENCES = [["Don't", "PANIC", "@ada"], ["panic", "now"]]


def test_words_are_kept_as_they_are_cut():
    """A tag belongs to one word: none may become two ids, as `don't` or `@ada` would in running text."""
    words = build_word_vocabulary(SENTENCES)
    assert words.entries == ("panic", "@ada", "don't", "now")
    assert words.encode_words(["Panic", "don't", "unknown"]).tolist() == [3, 5, 1]


def test_rare_words_become_unknown():
    """So that a model learns what an unknown word looks like."""
    assert build_word_vocabulary(SENTENCES, min_count=2).entries == ("panic",)


def test_spellings_keep_case_and_both_ends():
    """Case and endings tell names apart; what is between is dropped first."""
    letters = build_character_vocabulary([["abcdeF"]])
    ids = spellings(letters, ["abF", "abcdeF", ""], 4)
    a, b, e, big_f = (int(letters.encode(c)[0]) for c in "abeF")
    assert ids.tolist() == [[a, b, big_f, 0], [a, b, e, big_f], [0, 0, 0, 0]]
    assert ids.dtype == np.uint8
