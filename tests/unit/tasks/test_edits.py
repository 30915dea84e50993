import pytest

from recurra.tasks.edits import edit_distance, error_counts


@pytest.mark.parametrize(
    ("truth", "guess", "edits"),
    [
        ("kitten", "sitting", 3),
        ("", "abc", 3),
        ("abc", "", 3),
        ("same", "same", 0),
        ("flaw", "lawn", 2),
        ("saturday", "sunday", 3),
    ],
)
def test_known_distances(truth: str, guess: str, edits: int):
    """The textbooks' examples; and there is no direction in it."""
    assert edit_distance(truth, guess) == edits
    assert edit_distance(guess, truth) == edits


def test_words_and_characters_are_counted_apart():
    """`RUBOUT G M` heard as `RUBOUT JEE`: one word replaced, one lost; characters: `G M` against `JEE` is three edits."""
    counts = error_counts("RUBOUT G M", " RUBOUT  JEE ")
    assert (counts["word_edits"], counts["words"]) == (2, 3)
    assert error_counts("RUBOUT G M", "RUBOUT JEE")["character_edits"] == 3
    assert counts["characters"] == 10
