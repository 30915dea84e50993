import itertools
import math

import pytest
import torch

from recurra.models.beam import Search, beam_search

END = 0
TREE = {
    (): [0.1, 0.5, 0.4],
    (1,): [0.3, 0.4, 0.3],
    (2,): [0.9, 0.05, 0.05],
}
"""Probability of each token after a prefix; behind two tokens the end is nearly certain. Greedy says (1, 1), but (2) is
likelier: 0.4 * 0.9 against 0.5 * 0.4 * 0.98."""


def advance_of(tree):
    """The tree as a decoder whose state is the prefix as a number in base 3."""

    def advance(last_R, state):
        code_R = state["code"] * 3 + last_R
        rows = []
        for code in code_R.tolist():
            digits = []
            while code:
                digits.append(code % 3)
                code //= 3
            prefix = tuple(digit for digit in reversed(digits) if digit != END)
            rows.append(tree.get(prefix, [0.98, 0.01, 0.01]))
        return torch.tensor(rows, dtype=torch.float64).log(), {"code": code_R}

    return advance


def run(beams, limits=(5,), longest=5, penalty=0.0, tree=TREE):
    search = Search(beams, longest, penalty, END)
    start = {"code": torch.zeros(len(limits) * beams, dtype=torch.int64)}
    found = beam_search(advance_of(tree), start, torch.tensor(limits), search)
    return [
        [
            (tuple(found.tokens_BNL[row, n, : max(length, 0)].tolist()), float(found.scores_BN[row, n]))
            for n, length in enumerate(found.lengths_BN[row].tolist())
            if length >= 0
        ]
        for row in range(len(limits))
    ]


def test_greedy_takes_the_likeliest_token_each_time():
    """One beam; the score is the log probability of what it said, the end included."""
    ((tokens, score),) = run(1)[0]
    assert tokens == (1, 1)
    assert score == pytest.approx(math.log(0.5 * 0.4 * 0.98))


def test_two_beams_find_what_greedy_misses():
    """The best answer starts with the second best token."""
    (best, second) = run(2)[0]
    assert best[0] == (2,)
    assert best[1] == pytest.approx(math.log(0.4 * 0.9))
    assert second == ((1, 1), pytest.approx(math.log(0.5 * 0.4 * 0.98)))


def test_a_wide_beam_finds_the_best_of_all_answers():
    """Against every answer of up to three tokens, one by one."""
    scores = {}
    for length in range(4):
        for answer in itertools.product((1, 2), repeat=length):
            steps = [TREE.get(answer[:n], [0.98, 0.01, 0.01]) for n in range(length + 1)]
            spent = sum(math.log(p[token]) for p, token in zip(steps, [*answer, END], strict=True))
            scores[answer] = spent
    best = sorted(scores, key=scores.__getitem__, reverse=True)[:3]
    assert [tokens for tokens, _ in run(8)[0][:3]] == best


def test_the_length_penalty_favours_longer_answers():
    """Score = log p / ((5 + length) / 6) ** exponent."""
    found = dict(run(4, penalty=4.0)[0])
    assert found[(2,)] == pytest.approx(math.log(0.36))
    assert found[(1, 1)] == pytest.approx(math.log(0.5 * 0.4 * 0.98) / (7 / 6) ** 4)
    assert run(4, penalty=4.0)[0][0][0] != (2,)


def test_a_limit_cuts_an_answer_that_does_not_end():
    """Each row has its own limit, and what is cut still is an answer."""
    endless = {(1,) * n: [0.01, 0.98, 0.01] for n in range(9)}
    short, long = run(1, limits=(2, 4), tree=endless)
    assert short[0][0] == (1, 1)
    assert long[0][0] == (1, 1, 1, 1)


def test_a_row_among_others_is_as_it_is_alone():
    """Whoever shares the batch must not change an answer."""
    together = run(3, limits=(1, 5, 3))
    assert together == [run(3, limits=(limit,))[0] for limit in (1, 5, 3)]
