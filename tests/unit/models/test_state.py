import torch
from torch.testing import assert_close

from recurra.models.config import ModelConfig, NtmConfig
from recurra.models.sequence import ModelShape, SequenceModel
from recurra.models.state import StateSpec, StateTensor, detach, put_rows, select_rows, where_rows

PINNED_DIGEST = "2774946d0110db74075d0708a92cae60071813d8782cf6cb54f8be0d30bf19cb"


def test_bytes_and_digest_of_one_model_are_pinned():
    """Stored sessions carry this digest: a renamed or reordered tensor would orphan every one of them."""
    config = ModelConfig(cell="lstm", hidden_size=256, layers=2, pooling="mean")
    spec = SequenceModel(config, ModelShape("features", 3, 2, per_step=False)).state_spec

    assert [t.name for t in spec.tensors] == [
        "core.0.h",
        "core.0.c",
        "core.1.h",
        "core.1.c",
        "pool.value",
        "pool.count",
    ]
    assert spec.size_bytes == 4 * 256 * 4 + 256 * 4 + 8
    assert spec.digest == PINNED_DIGEST


def test_an_ntms_state_counts_its_memory():
    """Sessions are budgeted in bytes: 128 x 20 memory, two weightings, reads and controller."""
    config = ModelConfig(cell="ntm", hidden_size=100, ntm=NtmConfig(memory_rows=128, memory_width=20))
    spec = SequenceModel(config, ModelShape("features", 9, 8, per_step=True)).state_spec

    assert spec.size_bytes == 4 * (128 * 20 + 2 * 128 + 20 + 2 * 100)


def test_a_spec_survives_its_json():
    """Bundles publish it as JSON."""
    spec = StateSpec((StateTensor("a", (2, 3)), StateTensor("n", (), "int64")))

    assert StateSpec.from_json(spec.to_json()) == spec
    assert spec.prefixed("core").tensors[0].name == "core.a"


def test_rows_are_selected_put_and_mixed():
    """The engine moves single sessions in and out of its slots."""
    slots = {"h": torch.zeros(4, 2)}
    rows_B = torch.tensor([2, 0])

    put_rows(slots, rows_B, {"h": torch.tensor([[1.0, 2.0], [3.0, 4.0]])})

    assert_close(select_rows(slots, rows_B)["h"], torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    mixed = where_rows(torch.tensor([True, False, False, False]), {"h": torch.full((4, 2), 9.0)}, slots)
    assert mixed["h"][:, 0].tolist() == [9, 0, 1, 0]


def test_detaching_cuts_the_gradient_and_keeps_the_values():
    """Truncated backpropagation: the past is data."""
    value = torch.ones(1, 2, requires_grad=True) * 2

    cut = detach({"h": value})["h"]

    assert not cut.requires_grad
    assert_close(cut, value.detach())
