import math
import sys

import pytest

from recurra.errors import ConfigError
from recurra.tasks.bleu import Bleu


def test_by_hand():
    """`a b c d e` against `a b c d f`: precisions 4/5, 3/4, 2/3, 1/2, equal lengths."""
    counts = Bleu("none").counts(["a b c d e"], ["a b c d f"])
    assert Bleu("none").score(counts) == pytest.approx(100 * math.prod((4 / 5, 3 / 4, 2 / 3, 1 / 2)) ** 0.25)


def test_counts_of_batches_add_up_to_the_corpus():
    """BLEU is no mean of sentences: two workers must measure what one does; one of them may have nothing."""
    bleu = Bleu("13a")
    answers = ["The cat sat on the mat.", "A dog ran home quickly today.", "one"]
    right = ["The cat sat on a mat.", "The dog ran home very quickly today.", "one two"]
    whole = bleu.counts(answers, right)
    parts = [bleu.counts(answers[:1], right[:1]), bleu.counts(answers[1:], right[1:]), bleu.counts([], [])]
    assert {name: sum(part[name] for part in parts) for name in whole} == whole
    assert 0 < bleu.score(whole) < 100


def test_a_missing_library_is_named(monkeypatch):
    """It is an extra."""
    monkeypatch.setitem(sys.modules, "sacrebleu.metrics", None)
    with pytest.raises(ConfigError, match=r"pip install 'recurra\[text\]'"):
        Bleu("13a")
