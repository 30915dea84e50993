import json

import numpy as np
import pytest

from recurra.errors import RequestError
from recurra.tasks.problems.base import Problem
from recurra.tasks.problems.build import PROBLEMS, problem_from_description

SMALL = {
    "copy": (3,),
    "repeat_copy": (2, 3),
    "associative_recall": (4,),
    "dynamic_ngrams": (12,),
    "priority_sort": (5,),
}


@pytest.fixture(params=PROBLEMS)
def problem(request: pytest.FixtureRequest) -> Problem:
    return PROBLEMS[request.param]()


def test_equal_seeds_give_equal_problems_and_other_seeds_others(problem: Problem):
    """The data of a job is reproducible, and its evaluation is not its training."""
    ranges = [(size, size + 2) for size in SMALL[problem.name]]
    first, again, other = (list(problem.examples(8, ranges, seed)) for seed in (3, 3, 4))

    for one, two in zip(first, again, strict=True):
        assert all(np.array_equal(one[name], two[name]) for name in one)
    assert any(
        one[name].shape != two[name].shape or not np.array_equal(one[name], two[name])
        for one, two in zip(first, other, strict=True)
        for name in one
    )


def test_sizes_are_drawn_from_their_whole_range(problem: Problem):
    """Short problems are not rare, and both ends belong to the range: the paper draws evenly."""
    low = SMALL[problem.name]
    lengths = [len(e["counted"]) for e in problem.examples(300, [(size, size + 2) for size in low], seed=0)]
    ends = [len(problem.draw(np.random.default_rng(0), *(size + more for size in low))["counted"]) for more in (0, 2)]

    assert (min(lengths), max(lengths)) == tuple(ends)
    assert min(np.unique(lengths, return_counts=True)[1]) > 10


def test_examples_have_the_columns_of_the_schema(problem: Problem):
    """What is drawn is what is written."""
    example = problem.draw(np.random.default_rng(0), *SMALL[problem.name])

    for column in problem.schema.columns:
        value = example[column.name]
        steps = (len(example["counted"]),) if column.axis == "time" else ()
        assert value.shape == (*steps, *([column.width] if column.width else []))
        assert value.dtype == column.dtype
    assert set(np.unique(example["targets"])) <= {0, 1}


def test_a_description_gives_the_same_problem(problem: Problem):
    """Serving has the bundle's JSON alone."""
    assert problem_from_description(json.loads(json.dumps(problem.describe()))) == problem


def test_the_example_of_a_request_can_be_posed(problem: Problem):
    """It stands in error messages: who copies it must get an answer."""
    inputs, answer_from = problem.pose(problem.example)

    assert set(problem.example) == set(problem.fields)
    assert inputs.shape[1] == problem.input_size
    assert 0 <= answer_from < len(inputs)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("repeat_copy", {"repeats": 0}, "'repeats' is 0. Send a whole number from 1 to 4096"),
        ("repeat_copy", {"bits": [[0] * 8] * 100, "repeats": 41}, "makes 4100 steps of 100. Send at most 40"),
        ("associative_recall", {"bits": [[0] * 6] * 7}, "'bits' has 7 vectors. Send two items or more of 3 vectors"),
        ("associative_recall", {"bits": [[0] * 6] * 3}, "'bits' has 3 vectors. Send two items or more of 3 vectors"),
        ("associative_recall", {"query": [[0] * 6]}, "'query' has 1 vectors. Send the 3 of one item"),
        ("dynamic_ngrams", {"bits": [0, 0.5]}, "'bits' holds 0.5. Send 0 and 1 alone"),
        ("dynamic_ngrams", {"bits": []}, "'bits' has 0 bits. Send 1 to 4096"),
        ("priority_sort", {"priorities": [0.5]}, "'priorities' has 1 numbers for 2 vectors. Send one for each vector"),
        ("priority_sort", {"priorities": [0.5, -3]}, "'priorities' holds -3. Send numbers from -1 to 1"),
    ],
)
def test_what_is_no_problem_is_told_what_to_send(name, change, message):
    """A client sees nothing but this message."""
    problem = PROBLEMS[name]()
    with pytest.raises(RequestError, match=message):
        problem.pose({**problem.example, **change})
