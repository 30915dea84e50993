import itertools
import math

import numpy as np
import pytest
import torch

from recurra.tasks.ctc import Mixing, count_ngrams, greedy, prefix_search
from recurra.tasks.ngram import NgramModel


def logs_of(rows):
    return np.log(np.array(rows, np.float64))


def collapse(path):
    return tuple(k for k, _ in itertools.groupby(path) if k != 0)


def every_text(logs_TK):
    """Probability of each text: all paths that collapse to it, one by one."""
    found: dict = {}
    for path in itertools.product(range(logs_TK.shape[1]), repeat=len(logs_TK)):
        p = math.exp(sum(logs_TK[t, k] for t, k in enumerate(path)))
        found[collapse(path)] = found.get(collapse(path), 0.0) + p
    return found


def test_greedy_takes_out_repeats_and_blanks():
    """a a - a b b is `aab`: a blank keeps two equal symbols apart."""
    path = [1, 1, 0, 1, 2, 2]
    assert greedy(np.eye(3)[path]) == [1, 1, 2]
    assert greedy(np.eye(3)[[0, 0]]) == []


def test_the_search_sums_over_paths_where_greedy_takes_one():
    """Two frames of blank 0.6, a 0.4: the best path says nothing (0.36), the best text is `a` (0.64)."""
    logs = logs_of([[0.6, 0.4], [0.6, 0.4]])
    assert greedy(logs) == []
    best, second = prefix_search(logs, 4)
    assert best == ([1], pytest.approx(math.log(0.64)))
    assert second == ([], pytest.approx(math.log(0.36)))


def test_a_wide_search_finds_every_text_with_its_probability():
    """Against the sum over all 243 paths, doubled symbols among the texts."""
    logs = np.log(np.random.default_rng(1).dirichlet(np.ones(3), size=5))
    exact = every_text(logs)
    found = {tuple(text): score for text, score in prefix_search(logs, 1000)}
    assert set(found) == set(exact)
    for text, probability in exact.items():
        assert found[text] == pytest.approx(math.log(probability), abs=1e-9)


def test_the_score_is_torchs_ctc():
    """Training and search must mean the same by a text."""
    logs = np.log(np.random.default_rng(2).dirichlet(np.ones(4), size=6))
    text, score = prefix_search(logs, 500)[0]
    loss = torch.nn.functional.ctc_loss(
        torch.from_numpy(logs)[:, None], torch.tensor([text]), [6], [len(text)], reduction="sum"
    )
    assert score == pytest.approx(-float(loss), abs=1e-9)


def test_a_language_model_decides_between_what_sounds_alike():
    """Symbols 3 and 4 are equally likely after 3; the model has only ever seen `3 4`."""
    logs = logs_of([[0.02, 0.01, 0.01, 0.95, 0.01], [0.9, 0.025, 0.025, 0.025, 0.025], [0.04, 0.01, 0.01, 0.47, 0.47]])
    lm = count_ngrams([[3, 4]] * 9, 5, order=2, first=2)
    assert prefix_search(logs, 8, Mixing(1.0, 0.0, lm))[0][0] == [3, 4]
    other = count_ngrams([[3, 3]] * 9, 5, order=2, first=2)
    assert prefix_search(logs, 8, Mixing(1.0, 0.0, other))[0][0] == [3, 3]


def test_the_bonus_pays_for_symbols():
    """Without it a language model makes answers short."""
    logs = logs_of([[0.5, 0.5], [0.5, 0.5], [0.5, 0.5]])
    lm = count_ngrams([[1, 1]], 2, order=1, first=0)
    long = prefix_search(logs, 8, Mixing(0.0, 5.0, lm))[0][0]
    short = prefix_search(logs, 8, Mixing(0.0, -5.0, lm))[0][0]
    assert len(long) > len(short)


def test_what_follows_a_prefix_is_what_the_ngram_model_says():
    """The start of a sequence included: the model counted it with the first token repeated."""
    rows = [np.array([0, 1, 2, 1, 2]), np.array([0, 2, 2])]
    model = NgramModel(rows, 3, order=2)
    lm = count_ngrams([row[1:].tolist() for row in rows], 3, order=2, first=0)
    for prefix in ((), (1,), (1, 2), (1, 2, 1)):
        p = np.exp(lm(prefix))
        assert p.sum() == pytest.approx(1.0)
        for token in range(3):
            whole = np.array([0, *prefix, token])
            assert p[token] == pytest.approx(model.probabilities([whole])[-1])
