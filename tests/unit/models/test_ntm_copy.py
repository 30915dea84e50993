"""The copy task of the NTM paper (section 4.1), small enough for one core."""

import pytest
import torch
from torch.nn import functional

from recurra.models.config import ModelConfig, NtmConfig
from recurra.models.sequence import ModelShape, SequenceModel

BITS = 4


def copy_batch(generator, *, batch, length):
    """Random bit vectors, then a delimiter on its own channel, then silence while the vectors are recalled."""
    bits_BTK = torch.randint(0, 2, (batch, length, BITS), generator=generator).float()
    x_BTD = torch.zeros(batch, 2 * length + 1, BITS + 1)
    x_BTD[:, :length, :BITS] = bits_BTK
    x_BTD[:, length, BITS] = 1
    return x_BTD, bits_BTK


def recalled(model, x_BTD, length):
    return model(x_BTD)[0][:, length + 1 :]


@pytest.mark.timeout(240)
def test_a_small_ntm_learns_to_copy_sequences_longer_than_it_was_trained_on():
    """What a Neural Turing Machine is for: it learns the algorithm, not the length."""
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    ntm = NtmConfig(memory_rows=16, memory_width=8)
    model = SequenceModel(
        ModelConfig(cell="ntm", hidden_size=32, ntm=ntm), ModelShape("features", BITS + 1, BITS, True)
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    held_out, longer = copy_batch(torch.Generator().manual_seed(9), batch=64, length=7)

    for update in range(1, 4001):
        length = int(torch.randint(1, 6, (), generator=generator))
        x_BTD, bits_BTK = copy_batch(generator, batch=4, length=length)
        loss = (
            functional.binary_cross_entropy_with_logits(recalled(model, x_BTD, length), bits_BTK, reduction="sum") / 4
        )
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 10)
        optimizer.step()
        if update % 100 == 0:
            with torch.inference_mode():
                wrong = ((recalled(model, held_out, 7) > 0) != longer.bool()).float().mean()
            if wrong < 0.002:
                return
    pytest.fail(f"after {update} updates {wrong:.1%} of the bits of length 7 are wrong")
