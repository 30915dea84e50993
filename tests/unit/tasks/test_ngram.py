import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recurra.errors import ConfigError, DataError
from recurra.tasks.ngram import NgramModel


def tokens(*values: int) -> np.ndarray:
    return np.array(values, np.uint8)


def test_unigram_probabilities_are_witten_bells():
    """By hand: after bos, 'a a b' gives n = 3 tokens of 2 types, so P(a) = (2 + 2 / 4) / 5 with 4 tokens in all."""
    model = NgramModel([tokens(0, 1, 1, 2)], vocabulary_size=4, order=0)

    assert model.probabilities([tokens(0, 1, 2, 3)]) == pytest.approx([2.5 / 5, 1.5 / 5, 0.5 / 5])


def test_a_longer_context_is_interpolated_with_the_shorter_one():
    """By hand: 1 is followed by 1 once and by 2 once, so P(2 | 1) = (1 + 2 P(2)) / 4 with P(2) = (1 + 2 / 4) / 5."""
    model = NgramModel([tokens(0, 1, 1, 2)], vocabulary_size=4, order=1)

    assert model.probabilities([tokens(0, 1, 2)])[1] == pytest.approx((1 + 2 * 0.3) / 4)


def test_an_unseen_context_passes_on_to_the_shorter_one():
    """A context that never occurred says nothing; dividing by its zero count would say NaN."""
    low = NgramModel([tokens(0, 1, 1, 2)], vocabulary_size=4, order=0)
    high = NgramModel([tokens(0, 1, 1, 2)], vocabulary_size=4, order=2)

    assert high.probabilities([tokens(0, 3, 1)])[1] == pytest.approx(low.probabilities([tokens(0, 1)])[0])


def test_contexts_do_not_reach_over_the_start_of_a_sequence():
    """Files are independent: the first byte of one must not depend on the last of the file before."""
    model = NgramModel([tokens(0, 1, 2), tokens(0, 1, 2)], vocabulary_size=4, order=2)

    alone = model.probabilities([tokens(0, 1, 2)])
    behind_another = model.probabilities([tokens(0, 3, 3), tokens(0, 1, 2)])[2:]
    assert behind_another == pytest.approx(alone)


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 4), min_size=2, max_size=30), min_size=1, max_size=5),
    st.lists(st.integers(0, 4), min_size=1, max_size=6),
    st.integers(0, 3),
)
def test_probabilities_sum_to_one_after_any_context(training, context, order):
    """Bits per token mean something only for a distribution."""
    model = NgramModel([np.array(row, np.uint16) for row in training], vocabulary_size=5, order=order)

    after = [model.probabilities([np.array([*context, token], np.uint16)])[-1] for token in range(5)]
    assert sum(after) == pytest.approx(1)


def test_text_that_repeats_costs_few_bits_and_noise_costs_all_eight():
    """The two ends of the scale of bits per byte."""
    noise = np.random.default_rng(0).integers(0, 256, 60_000).astype(np.uint8)
    cycle = np.tile(np.arange(50, dtype=np.uint8), 200)

    assert NgramModel([cycle], 256).bits_per_token([cycle]) < 0.02
    assert NgramModel([noise[:30_000]], 256, order=0).bits_per_token([noise[30_000:]]) == pytest.approx(8, abs=0.02)


def test_a_token_outside_the_vocabulary_is_refused():
    """Its key would be another n-gram's key, silently."""
    with pytest.raises(DataError, match="reach from 0 to 7, but the vocabulary has 4"):
        NgramModel([tokens(0, 7)], vocabulary_size=4, order=1)


def test_an_order_that_does_not_fit_is_refused():
    """Keys would overflow 64 bits, silently."""
    with pytest.raises(ConfigError, match="Lower the order"):
        NgramModel([tokens(0, 1)], vocabulary_size=70_000, order=3)


def test_nothing_to_count_or_to_predict_is_an_error():
    """The mean of nothing is NaN."""
    with pytest.raises(DataError, match="nothing to count"):
        NgramModel([tokens(0)], vocabulary_size=4, order=1)
    with pytest.raises(DataError, match="nothing to predict"):
        NgramModel([tokens(0, 1)], vocabulary_size=4, order=1).bits_per_token([])


def test_order_three_of_a_markov_chain_finds_its_entropy():
    """A chain of order 1 with P(stay) = 0.9 over two tokens costs H(0.9) = 0.469 bits."""
    steps = np.random.default_rng(1).random(200_000) < 0.1
    chain = (np.cumsum(steps) % 2).astype(np.uint8)

    entropy = -(0.9 * math.log2(0.9) + 0.1 * math.log2(0.1))
    assert NgramModel([chain[:100_000]], 2).bits_per_token([chain[100_000:]]) == pytest.approx(entropy, abs=0.01)
