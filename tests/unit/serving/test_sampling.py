"""A row's token depends on its own logits, options and position alone."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recurra.serving.sampling import Sampling, SamplingTable, find_stop, log_probabilities, uniforms

OPTIONS = st.builds(
    Sampling,
    max_tokens=st.just(1),
    temperature=st.sampled_from([0.0, 0.3, 1.0, 2.0]),
    top_p=st.sampled_from([1.0, 0.9, 0.3, 0.0]),
    top_k=st.sampled_from([0, 1, 3, 100]),
    seed=st.integers(0, 2**64 - 1),
)


def choose(options: list[Sampling], logits: torch.Tensor, steps: int = 1) -> list[list[int]]:
    table = SamplingTable(len(options))
    for slot, option in enumerate(options):
        table.set(slot, option)
    return [table.choose(logits, np.arange(len(options))).tolist() for _ in range(steps)]


@settings(max_examples=40, deadline=None)
@given(options=st.lists(OPTIONS, min_size=1, max_size=8), seed=st.integers(0, 100))
def test_a_row_gets_the_same_tokens_in_any_company(options, seed):
    """Law: sampling alone and in a batch is the same, whatever the others ask for."""
    logits = torch.randn(len(options), 11, generator=torch.Generator().manual_seed(seed))
    together = choose(options, logits, steps=3)

    for row, option in enumerate(options):
        alone = choose([option], logits[row : row + 1], steps=3)
        assert [step[row] for step in together] == [step[0] for step in alone]


def test_temperature_zero_takes_the_likeliest_token():
    """Greedy decoding is what deterministic clients ask for."""
    logits = torch.tensor([[0.0, 5.0, 4.9], [3.0, 1.0, 2.0]])

    assert choose([Sampling(max_tokens=1, temperature=0.0)] * 2, logits) == [[1, 0]]


def test_draws_follow_the_distribution():
    """Tokens must come as often as their probabilities say."""
    probs = torch.tensor([0.5, 0.3, 0.15, 0.05])
    options = [Sampling(max_tokens=1, seed=seed) for seed in range(20_000)]
    tokens = choose(options, probs.log().expand(20_000, -1))[0]

    np.testing.assert_allclose(np.bincount(tokens, minlength=4) / 20_000, probs, atol=0.012)


@pytest.mark.parametrize(
    ("option", "allowed"),
    [
        ({"top_k": 2}, {0, 1}),
        ({"top_p": 0.79}, {0, 1}),
        ({"top_p": 0.0}, {0}),
        ({"top_k": 3, "top_p": 0.99}, {0, 1, 2}),
    ],
)
def test_cut_tokens_never_come(option, allowed):
    """top_k and top_p cut the tail and leave the rest as it was."""
    probs = torch.tensor([0.5, 0.3, 0.15, 0.05])
    options = [Sampling(max_tokens=1, seed=seed, **option) for seed in range(2_000)]

    assert set(choose(options, probs.log().expand(2_000, -1))[0]) == allowed


def test_low_temperature_sharpens():
    """Half the temperature squares the odds."""
    probs = torch.tensor([0.6, 0.4])
    options = [Sampling(max_tokens=1, temperature=0.5, seed=seed) for seed in range(20_000)]
    tokens = choose(options, probs.log().expand(20_000, -1))[0]

    assert np.mean(np.array(tokens) == 0) == pytest.approx(0.36 / 0.52, abs=0.012)


def test_the_hash_is_uniform_and_its_positions_are_independent():
    """It stands in for a random generator: no bias, no correlation between neighbours."""
    values = uniforms(np.arange(50_000, dtype=np.uint64), np.zeros(50_000, np.uint64))
    later = uniforms(np.arange(50_000, dtype=np.uint64), np.ones(50_000, np.uint64))

    assert 0 <= values.min() and values.max() < 1
    np.testing.assert_allclose(np.histogram(values, 10, (0, 1))[0], 5_000, rtol=0.06)
    assert abs(np.corrcoef(values, later)[0, 1]) < 0.02
    assert abs(np.corrcoef(values[1:], values[:-1])[0, 1]) < 0.02


def test_log_probabilities_sum_to_one():
    """Natural logarithms, as OpenAI's clients expect them."""
    logits = torch.randn(3, 5)
    details = log_probabilities(logits, torch.tensor([0, 1, 2]), alternatives=5)

    for row, (value, best) in enumerate(details):
        assert sum(np.exp(list(best.values()))) == pytest.approx(1.0)
        assert value == pytest.approx(best[row])


def test_the_first_stop_text_wins():
    """With several stop texts the answer ends before whichever comes first."""
    assert find_stop("abc\ndef;", (";", "\n")) == 3
    assert find_stop("abc", ("x",)) is None
