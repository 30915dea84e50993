import numpy as np
import pytest

from recurra.errors import ConfigError
from recurra.tasks.problems.recall import AssociativeRecall

ITEMS = np.array([[[1], [0]], [[1], [1]], [[0], [1]]])


def test_recall_asks_for_the_item_behind_the_one_that_is_shown_again():
    """By hand, two vectors of one bit an item: channels are the bit, the delimiter of items, that of queries."""
    example = AssociativeRecall(width=1, item=2).of(ITEMS, queried=1)

    assert example["inputs"].tolist() == [
        *([0, 1, 0], [1, 0, 0], [0, 0, 0]),
        *([0, 1, 0], [1, 0, 0], [1, 0, 0]),
        *([0, 1, 0], [0, 0, 0], [1, 0, 0]),
        *([0, 0, 1], [1, 0, 0], [1, 0, 0], [0, 0, 1]),
        *([0, 0, 0], [0, 0, 0]),
    ]
    assert example["targets"].tolist() == [[0]] * 13 + [[0], [1]]
    assert example["counted"].tolist() == [0] * 13 + [1, 1]


def test_the_papers_items_are_three_vectors_of_six_bits():
    """Eight channels; six items take 24 steps, the query 5 and the answer 3."""
    problem = AssociativeRecall()
    example = problem.draw(np.random.default_rng(0), 6)

    assert example["inputs"].shape == (32, 8)
    assert example["counted"].sum() == 3


def test_every_item_but_the_last_is_asked_about():
    """Nothing comes behind the last; and a network that always says the second item must not pass."""
    problem = AssociativeRecall(width=16)
    generator, asked = np.random.default_rng(0), set()
    for _ in range(60):
        example = problem.draw(generator, 4)
        items = [example["inputs"][4 * i + 1 : 4 * i + 4, :16].tolist() for i in range(4)]
        queried = items.index(example["inputs"][17:20, :16].tolist())
        assert example["targets"][-3:].tolist() == items[queried + 1]
        asked.add(queried)

    assert asked == {0, 1, 2}


def test_items_that_are_alike_share_vectors_and_are_never_equal():
    """What a network confuses: by chance one of ten items in ten shares a vector with the queried one, in its place."""
    problem, generator = AssociativeRecall(), np.random.default_rng(0)
    for _ in range(50):
        shown = problem.draw_alike(generator, 10, vectors=8)["inputs"][:40].reshape(10, 4, 8)[:, 1:, :6]
        assert len(np.unique(shown.reshape(30, 6), axis=0)) <= 8
        assert len(np.unique(shown.reshape(10, 18), axis=0)) == 10


def test_more_items_than_there_are_cannot_all_differ():
    """Two bits make at most four vectors, and one vector an item no more items than that."""
    with pytest.raises(ConfigError, match="different vectors make . items of 1, and 9 were asked for. Ask for fewer"):
        AssociativeRecall(width=2, item=1).draw_alike(np.random.default_rng(0), 9)


def test_a_posed_recall_is_what_training_saw():
    """Items come as a list of vectors, without delimiters."""
    problem = AssociativeRecall(width=1, item=2)
    inputs, answer_from = problem.pose({"bits": ITEMS.reshape(-1, 1).tolist(), "query": ITEMS[1].tolist()})

    assert np.array_equal(inputs, problem.of(ITEMS, 1)["inputs"])
    assert answer_from == 13
