import torch

from recurra.data.vocabulary import ByteVocabulary
from recurra.tasks.references import bytes_to_texts, encode_all, pad_ids, texts_to_bytes


def test_texts_come_back_from_bytes():
    """References travel with the batch and must be compared as they were written."""
    texts = ["größer", "", "日本 x"]
    assert bytes_to_texts(texts_to_bytes(texts)) == texts


def test_ids_are_padded_with_zeros():
    """To the longest row, and never to nothing."""
    ids, lengths = pad_ids(encode_all(ByteVocabulary(), ["ab", "", "c"]))
    assert ids.tolist() == [[97, 98], [0, 0], [99, 0]]
    assert lengths.tolist() == [2, 0, 1]
    assert pad_ids([[], []])[0].shape == torch.Size([2, 1])
