import numpy as np

from recurra.tasks.problems.sorting import PrioritySort

BITS = np.array([[1, 0], [0, 1], [1, 1]])


def test_the_vectors_of_the_highest_priorities_come_first_and_the_lowest_are_left_out():
    """By hand: of three vectors two are kept, in falling order of priority."""
    example = PrioritySort(width=2, kept=0.6).of(BITS, np.array([-0.5, 0.25, 0.75]))

    assert example["inputs"].tolist() == [
        [1, 0, -0.5, 0],
        [0, 1, 0.25, 0],
        [1, 1, 0.75, 0],
        [0, 0, 0, 1],
        *[[0] * 4] * 2,
    ]
    assert example["targets"].tolist() == [[0, 0]] * 4 + [[1, 1], [0, 1]]
    assert example["counted"].tolist() == [0, 0, 0, 0, 1, 1]


def test_the_paper_keeps_sixteen_of_twenty():
    """20 + 1 + 16 steps."""
    example = PrioritySort().draw(np.random.default_rng(0), 20)

    assert example["inputs"].shape == (37, 10)
    assert example["counted"].sum() == 16


def test_priorities_are_drawn_evenly_between_the_ends():
    """Uniform on (-1, 1)."""
    generator = np.random.default_rng(0)
    drawn = np.concatenate([PrioritySort().draw(generator, 20)["inputs"][:20, 8] for _ in range(100)])

    assert np.histogram(drawn, bins=4, range=(-1, 1))[0].min() > 430


def test_a_posed_sort_is_what_training_saw():
    """Priorities stand beside the vectors, in the same order."""
    problem, priorities = PrioritySort(width=2), [0.5, -1, 1]
    inputs, answer_from = problem.pose({"bits": BITS.tolist(), "priorities": priorities})

    assert np.array_equal(inputs, problem.of(BITS, np.array(priorities))["inputs"])
    assert answer_from == 4
