import numpy as np
import pytest

from recurra.tasks.problems.copying import Copy, RepeatCopy

BITS = np.array([[1, 0], [0, 1], [1, 1]])


def test_the_copy_problem_is_the_papers():
    """Vectors, a delimiter on a channel of its own, then nothing to see while they are to be said again."""
    example = Copy(width=2).of(BITS)

    assert example["inputs"].tolist() == [[1, 0, 0], [0, 1, 0], [1, 1, 0], [0, 0, 1], *[[0, 0, 0]] * 3]
    assert example["targets"].tolist() == [[0, 0]] * 4 + BITS.tolist()
    assert example["counted"].tolist() == [0, 0, 0, 0, 1, 1, 1]


def test_a_posed_copy_is_what_training_saw():
    """The delimiter and the empty steps are the problem's business, not the client's."""
    inputs, answer_from = Copy(width=2).pose({"bits": BITS.tolist()})

    assert np.array_equal(inputs, Copy(width=2).of(BITS)["inputs"])
    assert answer_from == 4


def test_repeat_copy_says_the_vectors_so_often_and_then_that_it_is_done():
    """By hand: two vectors three times, then the end marker on a channel of its own; the count is normalised."""
    problem = RepeatCopy(width=2, fewest=1, most=3)
    example = problem.of(BITS[:2], 3)
    count = (3 - 2) / (2 / 3) ** 0.5  # 1, 2 and 3 have mean 2 and variance 2/3

    assert example["inputs"][:2].tolist() == [[1, 0, 0], [0, 1, 0]]
    assert example["inputs"][2].tolist() == pytest.approx([0, 0, count])
    assert not example["inputs"][3:].any()
    assert example["targets"][3:].tolist() == [[1, 0, 0], [0, 1, 0]] * 3 + [[0, 0, 1]]
    assert example["counted"].tolist() == [0] * 3 + [1] * 7


def test_the_number_of_repeats_has_mean_0_and_variance_1():
    """As in the paper, over what training draws; a count beyond it goes on along the same line."""
    problem = RepeatCopy()
    seen = [problem.normalised(repeats) for repeats in range(1, 11)]

    assert np.mean(seen) == pytest.approx(0)
    assert np.var(seen) == pytest.approx(1)
    assert problem.normalised(20) - problem.normalised(19) == pytest.approx(seen[1] - seen[0])


def test_alike_sequences_to_repeat_have_few_vectors_and_often_zeros():
    """What a network loses its place by: in random ones, a vector of zeros is rare, and looks like silence."""
    problem, generator = RepeatCopy(), np.random.default_rng(0)
    drawn = [problem.draw_alike(generator, 10, 3, kinds=8)["inputs"] for _ in range(200)]
    kinds = [len(np.unique(inputs[:10], axis=0)) for inputs in drawn]

    assert {len(inputs) for inputs in drawn} == {10 + 1 + 10 * 3 + 1}
    assert max(kinds) <= 8
    assert min(kinds) <= 2
    assert sum(not inputs[:10].any(1).all() for inputs in drawn) > 100


def test_a_posed_repeat_copy_is_what_training_saw():
    """The client says how often in plain numbers."""
    problem = RepeatCopy(width=2)
    inputs, answer_from = problem.pose({"bits": BITS.tolist(), "repeats": 4})

    assert np.array_equal(inputs, problem.of(BITS, 4)["inputs"])
    assert answer_from == 4
