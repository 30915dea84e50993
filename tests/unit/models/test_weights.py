import hashlib

import pytest
import torch
from torch.testing import assert_close

from recurra.errors import ModelError
from recurra.models.config import ModelConfig
from recurra.models.sequence import ModelShape, SequenceModel
from recurra.models.weights import load_weights, save_weights

SHAPE = ModelShape("tokens", 7, 7, per_step=True)


def model(seed=0, **changes):
    torch.manual_seed(seed)
    return SequenceModel(ModelConfig(**{"cell": "lstm", "hidden_size": 4, **changes}), SHAPE)


@pytest.mark.parametrize("cell", ["rnn", "gru", "lstm", "ntm"])
def test_saved_weights_give_the_same_answers(cell):
    """What training measured is what serving answers."""
    first, second = model(cell=cell), model(1, cell=cell)
    tokens = torch.randint(0, 7, (2, 5))

    load_weights(second, save_weights(first))

    assert_close(second(tokens), first(tokens), atol=0, rtol=0)


def test_equal_weights_give_equal_bytes():
    """Bundles are named by the hash of their content."""
    digests = {hashlib.sha256(save_weights(model())).hexdigest() for _ in range(2)}

    assert len(digests) == 1


def test_tied_weights_are_stored_once():
    """And load into a tied model again."""
    tied = model(tied_embeddings=True)

    load_weights(tied, save_weights(tied))

    assert "head.bias" in tied.state_dict() and "head.weight" not in tied.state_dict()


def test_other_shapes_are_named():
    """The user has changed hidden_size and must see that."""
    with pytest.raises(
        ModelError, match=r"weight_hh has shape \[16, 4\] where the model has \[20, 5\].*same `model` section"
    ):
        load_weights(model(hidden_size=5), save_weights(model()))


def test_missing_and_surplus_tensors_are_named():
    """The user has changed the number of layers, or the cell."""
    with pytest.raises(ModelError, match=r"core\.cells\.1\.\w+ is missing"):
        load_weights(model(layers=2), save_weights(model()))
    with pytest.raises(
        ModelError, match=r"core\.cells\.1\.\w+ is not of this model.*and \d+ more|is not of this model"
    ):
        load_weights(model(), save_weights(model(layers=2)))


@pytest.mark.parametrize("data", [b"", b"no tensors here", b"\xff" * 64])
def test_bytes_that_are_no_weights_are_refused(data):
    """A torn upload must not look like a programming error."""
    with pytest.raises(ModelError, match="no readable safetensors file"):
        load_weights(model(), data)
