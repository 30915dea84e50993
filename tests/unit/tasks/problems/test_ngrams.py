import numpy as np
import pytest

from recurra.tasks.problems.ngrams import DynamicNgrams


def test_each_bit_asks_for_the_next_one():
    """By hand: four bits make three predictions, all of them judged."""
    example = DynamicNgrams(context=1).of(np.array([1, 0, 1, 1]))

    assert example["inputs"].tolist() == [[1], [0], [1]]
    assert example["targets"].tolist() == [[0], [1], [1]]
    assert example["counted"].tolist() == [1, 1, 1]


def test_the_optimal_estimator_counts_what_followed_the_same_context():
    """(N1 + 1/2) / (N1 + N0 + 1), by hand with one bit of context and the bits 1 1 1 0 1."""
    given = DynamicNgrams(context=1).optimal(np.array([1, 1, 1, 0, 1]))

    after_one = [0.5, 1.5 / 2, 0.5 / 3]  # a 1, again a 1, and then a 0 behind two ones
    assert given.tolist() == pytest.approx([0.5, *after_one, 0.5])


def test_the_optimum_is_paid_for_what_is_judged():
    """The first bit is never predicted, and costs nothing."""
    problem = DynamicNgrams(context=1)
    example = problem.of(np.array([1, 1, 1, 0, 1]))

    assert example["optimum"] == pytest.approx(-np.log2([0.5, 0.75, 1 / 6, 0.5]).sum())


def test_the_optimum_of_the_papers_sequences_is_the_papers():
    """The curves in section 4.4 end at about 132 bits for 200; a table that is drawn wrongly would not."""
    problem = DynamicNgrams()
    optimum = np.mean([example["optimum"] for example in problem.examples(400, [(200, 200)], seed=0)])

    assert optimum == pytest.approx(132.3, abs=1.5)


def test_contexts_keep_their_own_chances():
    """Beta(1/2, 1/2) makes most contexts nearly certain: what follows one in a sequence is mostly the same."""
    problem = DynamicNgrams(context=2)
    generator, shares = np.random.default_rng(0), []
    for _ in range(40):
        bits = problem.draw(generator, 400)["inputs"][:, 0].astype(int)
        for context in range(4):
            following = [bits[i + 2] for i in range(len(bits) - 2) if 2 * bits[i] + bits[i + 1] == context]
            shares += [np.mean(following)] if len(following) >= 20 else []

    extreme = np.mean([min(share, 1 - share) < 0.15 for share in shares])
    assert extreme == pytest.approx(0.5, abs=0.1)  # of Beta(1/2, 1/2), 51 % lies there


def test_a_posed_sequence_is_answered_at_every_bit():
    """The answer to each bit is the chance that a 1 comes next."""
    inputs, answer_from = DynamicNgrams().pose({"bits": [1, 0, 1]})

    assert inputs.tolist() == [[1], [0], [1]]
    assert answer_from == 0
