import pytest
import torch
from torch.testing import assert_close

from recurra.models.embedding import TiedHead, TokenEmbedding


def test_an_embedding_starts_with_the_spread_it_is_told():
    """How fast a byte model learns depends on it."""
    torch.manual_seed(0)

    assert float(TokenEmbedding(500, 64, 0.0).weight.detach().std()) == pytest.approx(64**-0.5, rel=0.05)
    assert float(TokenEmbedding(500, 64, 0.0, std=1.0).weight.detach().std()) == pytest.approx(1, rel=0.05)


def test_embedding_dropout_drops_whole_words_everywhere_in_the_batch():
    """Dropping single units of a word would only add noise (Gal and Ghahramani 2016)."""
    torch.manual_seed(0)
    embedding = TokenEmbedding(50, 4, 0.5)
    tokens = torch.arange(50).repeat(2, 1)

    first, second = embedding(tokens)

    assert_close(first, second)
    gone = (first == 0).all(1)
    assert 10 < gone.sum() < 40
    assert_close(first[~gone], 2 * embedding.weight[~gone])


def test_every_word_is_there_outside_training():
    """Answers must not depend on chance."""
    embedding = TokenEmbedding(50, 4, 0.9).eval()

    assert_close(embedding(torch.arange(50)), embedding.weight)


def test_a_tied_head_reads_the_embeddings_own_weights():
    """One matrix, one gradient from both of its uses."""
    embedding, head = TokenEmbedding(5, 3, 0.0), TiedHead(5)
    y = torch.randn(2, 3)

    logits = head(y, embedding)
    logits.sum().backward()

    assert_close(logits, y @ embedding.weight.T)
    assert [name for name, _ in head.named_parameters()] == ["bias"]
    assert embedding.weight.grad.any()
