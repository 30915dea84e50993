import importlib

import numpy as np
import pytest

from recurra.tasks.spans import Span, agreement, f1, spans_of


def test_entities_by_hand():
    """B- starts, I- goes on, O and another kind end; the last word can end one."""
    tags = ["O", "B-per", "I-per", "O", "B-loc", "B-loc", "I-loc"]
    assert spans_of(tags) == [Span("per", 1, 3), Span("loc", 4, 5), Span("loc", 5, 7)]


def test_an_inside_without_a_beginning_starts_an_entity():
    """Models emit that; conlleval and seqeval count it so."""
    assert spans_of(["I-per", "I-loc", "O", "I-loc"]) == [Span("per", 0, 1), Span("loc", 1, 2), Span("loc", 3, 4)]


def test_tags_without_a_prefix_are_entities_of_one_word():
    """Parts of speech: F1 is then the accuracy."""
    assert spans_of(["NOUN", "NOUN", "O"]) == [Span("NOUN", 0, 1), Span("NOUN", 1, 2)]
    assert agreement(["NOUN", "VERB"], ["NOUN", "NOUN"]) == (1, 2, 2)


def test_a_wrong_border_or_kind_is_no_hit():
    """Entities count as wholes: one of two is found, and one is made up."""
    truth = ["B-per", "I-per", "O", "B-loc"]
    guess = ["B-per", "O", "O", "B-loc"]
    assert agreement(truth, guess) == (1, 2, 2)
    assert f1(1, 2, 2) == 0.5
    assert f1(0, 0, 0) == 0.0


def test_the_counts_are_seqevals():
    """The field's own tool, on random tags of every kind of nonsense; needs seqeval."""
    try:
        seqeval = importlib.import_module("seqeval.metrics")
    except ImportError:
        pytest.skip("seqeval is not installed")
    rng = np.random.default_rng(0)
    names = ["O", "B-a", "I-a", "B-b", "I-b"]
    truth = [[names[i] for i in rng.integers(0, 5, n)] for n in rng.integers(1, 12, 50)]
    guess = [[names[i] for i in rng.integers(0, 5, len(row))] for row in truth]
    hits, guesses, truths = np.sum([agreement(t, g) for t, g in zip(truth, guess, strict=True)], axis=0)
    assert f1(hits, guesses, truths) == pytest.approx(seqeval.f1_score(truth, guess))
