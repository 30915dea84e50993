import torch

from recurra.models.words import WordFront, WordSizes

SIZES = WordSizes(words=5, characters=9, vector=4, filters=6)


def front() -> WordFront:
    torch.manual_seed(0)
    return WordFront(SIZES, 0.0).eval()


def test_padding_behind_a_word_changes_nothing():
    """A word has one vector, however wide the column is; the convolution sees padding as zeros."""
    model = front()
    narrow = model(torch.tensor([[2.0, 3, 4, 5]]))
    wide = model(torch.tensor([[2.0, 3, 4, 5, 0, 0, 0]]))
    torch.testing.assert_close(narrow, wide)


def test_a_words_vector_comes_first_and_its_spelling_after_it():
    """Words that the vocabulary lacks differ by their spelling alone."""
    model = front()
    one, other = model(torch.tensor([[1.0, 3, 4, 0], [1.0, 4, 3, 0]]))
    torch.testing.assert_close(one[:4], model.words.weight[1])
    torch.testing.assert_close(one[:4], other[:4])
    assert not torch.allclose(one[4:], other[4:])
    assert one.shape == (model.output_size,)


def test_a_row_of_padding_is_finite():
    """Batches are padded with zeros, and a NaN there would reach every weight through the gradient."""
    model = front()
    found = model(torch.zeros(2, 3, 4))
    assert found.shape == (2, 3, 10) and torch.isfinite(found).all()
