import itertools
import math

import pytest
import torch

from recurra.models.crf import PairwiseHead, best_path, log_partition, pair_scores, path_score


@pytest.fixture
def scores():
    """[B=3, T=4, K+1=4, K=3] random scores, and a mask with rows of 4, 2 and 1 steps."""
    generator = torch.Generator().manual_seed(3)
    mask = torch.arange(4) < torch.tensor([4, 2, 1])[:, None]
    return torch.randn(3, 4, 4, 3, generator=generator, dtype=torch.float64), mask


def every_path(scores_TIJ, steps):
    """Score of each path, one after the other: what the dynamic programs must agree with."""
    found = {}
    for path in itertools.product(range(3), repeat=steps):
        before = 3
        total = 0.0
        for t, tag in enumerate(path):
            total += float(scores_TIJ[t, before, tag])
            before = tag
        found[path] = total
    return found


def test_the_forward_algorithm_sums_over_every_path(scores):
    """81, 9 and 3 paths, summed one by one."""
    values, mask = scores
    sums = log_partition(values, mask)
    for row, steps in enumerate((4, 2, 1)):
        one_by_one = math.log(sum(math.exp(score) for score in every_path(values[row], steps).values()))
        assert float(sums[row]) == pytest.approx(one_by_one, abs=1e-12)


def test_viterbi_finds_the_best_of_all_paths(scores):
    """And no step of the padding has a say in it."""
    values, mask = scores
    found = best_path(values, mask)
    for row, steps in enumerate((4, 2, 1)):
        paths = every_path(values[row], steps)
        assert tuple(found[row, :steps].tolist()) == max(paths, key=paths.__getitem__)


def test_the_score_of_a_path_is_the_sum_of_its_pairs(scores):
    """The numerator of the likelihood."""
    values, mask = scores
    tags = torch.tensor([[0, 2, 1, 1], [2, 2, 0, 0], [1, 0, 0, 0]])
    found = path_score(values, tags, mask)
    for row, steps in enumerate((4, 2, 1)):
        assert float(found[row]) == pytest.approx(every_path(values[row], steps)[tuple(tags[row, :steps].tolist())])


def test_by_hand_two_tags_and_two_steps():
    """Starts (0, 1), then transitions [[2, 0], [0, 0]]: paths score 2, 0, 1, 1; the best starts with the worse tag."""
    values = torch.tensor([[[[9.0, 9.0], [9.0, 9.0], [0.0, 1.0]], [[2.0, 0.0], [0.0, 0.0], [9.0, 9.0]]]])
    mask = torch.ones(1, 2, dtype=torch.bool)
    assert float(log_partition(values, mask)) == pytest.approx(math.log(math.exp(2) + 1 + 2 * math.e))
    assert best_path(values, mask).tolist() == [[0, 0]]


def test_a_sequence_that_goes_on_may_follow_any_tag():
    """A session sends a sentence in parts: the scores of a first step are not for a later part."""
    values = torch.tensor([[[[0.0, 5.0], [0.0, 0.0], [9.0, 0.0]]]])
    mask = torch.ones(1, 1, dtype=torch.bool)
    assert best_path(values, mask).tolist() == [[0]]
    assert best_path(values, mask, begins=False).tolist() == [[1]]


def test_the_gradient_of_the_partition_is_the_marginals(scores):
    """Each step's pair marginals sum to 1: the derivative of log Z is a distribution (and finite in float64)."""
    values, mask = scores
    values.requires_grad_()
    log_partition(values, mask).sum().backward()
    per_step = values.grad.sum((2, 3))
    torch.testing.assert_close(per_step, mask.double())


def test_the_head_adds_transitions_to_emissions():
    """Score of tag j after tag i = emission j + transition i, j."""
    torch.manual_seed(0)
    head = PairwiseHead(5, 3)
    torch.nn.init.normal_(head.transition)
    y = torch.randn(2, 4, 5)
    values = pair_scores(head(y), 3)
    assert values.shape == (2, 4, 4, 3)
    torch.testing.assert_close(values[1, 2, 3, 1], head.emission(y)[1, 2, 1] + head.transition[3, 1])
