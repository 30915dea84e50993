import pytest

from recurra.data.dataset import Dataset
from recurra.tasks.problems.copying import RepeatCopy
from recurra.tasks.problems.dataset import write_problems


def test_what_is_written_can_be_drawn_again_and_is_written_once(local_url: str):
    """A second run of a prepare script must not double the data; its description leads back to the problem."""
    problem = RepeatCopy(width=3)
    first = write_problems(local_url, problem, 5, [(1, 2), (3, 3)], seed=4)
    again = write_problems(local_url, problem, 5, [(1, 2), (3, 3)], seed=4)
    dataset = Dataset.open(local_url)

    assert first.endswith("5 sequences of 1 to 2 vectors, 3 repeats")
    assert again.endswith("already holds 5 sequences and is left as it is.")
    assert dataset.metadata["problem"] == problem.describe()
    assert dataset.metadata["sizes"] == {"vectors": [1, 2], "repeats": [3, 3]}
    for row, example in enumerate(problem.examples(5, [(1, 2), (3, 3)], 4)):
        assert dataset[row]["targets"].tolist() == example["targets"].tolist()


def test_a_range_for_each_size_is_needed(local_url: str):
    """A problem of two sizes with one range is a mistake of the caller."""
    with pytest.raises(ValueError, match="shorter"):
        write_problems(local_url, RepeatCopy(), 5, [(1, 2)], seed=4)
