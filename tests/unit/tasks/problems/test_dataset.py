import numpy as np
import pytest

from recurra.data.dataset import Dataset
from recurra.data.pipeline import Pipeline
from recurra.data.plan import PlanOptions
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


def test_easier_problems_are_read_before_the_others(local_url: str):
    """A curriculum: a run that does not shuffle sees them in the order in which they were written, and no problem twice."""
    problem = RepeatCopy(width=8)
    easier = [(3, [(2, 2), (1, 1)]), (5, [(2, 2), (1, 1)]), (4, [(3, 3), (2, 2)])]
    said = write_problems(local_url, problem, 8, [(9, 9), (3, 3)], seed=4, easier=easier)
    dataset = Dataset.open(local_url)

    assert said.endswith(": 12 easier ones, then 8 sequences of 9 vectors, 3 repeats")
    assert dataset.metadata["easier"][2] == {"sequences": 4, "vectors": [3, 3], "repeats": [2, 2]}
    options = PlanOptions(batch_sequences=2, shuffle=False, bucket_window=2)
    lengths = np.concatenate([batch.lengths for batch in Pipeline(dataset, options, epochs=1)])
    assert lengths.tolist() == [6] * 8 + [11] * 4 + [38] * 8
    assert len({dataset[row]["inputs"].tobytes() for row in range(8)}) == 8


def test_a_range_for_each_size_is_needed(local_url: str):
    """A problem of two sizes with one range is a mistake of the caller."""
    with pytest.raises(ValueError, match="shorter"):
        write_problems(local_url, RepeatCopy(), 5, [(1, 2)], seed=4)
