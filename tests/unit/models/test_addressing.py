"""Addressing against a plain transcription of the paper's equations, one loop per sum."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from recurra.models import addressing
from recurra.models.addressing import HeadParameters
from recurra.models.config import NtmConfig

SHAPES = st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(2, 9), st.integers(1, 5), st.integers(1, 3))


def draw(shape, seed):
    """Random head parameters, last weightings and a memory, in float64."""
    batch, heads, rows, width, reach = shape
    generator = torch.Generator().manual_seed(seed)

    def normal(*size):
        return torch.randn(*size, generator=generator, dtype=torch.float64)

    parameters = HeadParameters(
        key_BJM=normal(batch, heads, width),
        strength_BJ=normal(batch, heads).exp(),
        gate_BJ=normal(batch, heads).sigmoid(),
        shift_BJS=normal(batch, heads, 2 * reach + 1).softmax(2),
        sharpness_BJ=1 + normal(batch, heads).exp(),
        erase_BWM=normal(batch, heads, width).sigmoid(),
        add_BWM=normal(batch, heads, width),
    )
    return parameters, normal(batch, heads, rows).softmax(2), normal(batch, width, rows)


def similarity(u, v):
    """Equation 6, with the epsilon that keeps it finite."""
    return u @ v / np.sqrt((u @ u + 1e-6) * (v @ v + 1e-6))


def addressed(key, strength, gate, shifts, sharpness, last, memory):
    """Equations 5 to 9 for one head of one row."""
    rows, reach = len(memory), len(shifts) // 2
    likeness = np.array([np.exp(strength * similarity(key, memory[i])) for i in range(rows)])
    content = likeness / likeness.sum()  # 5
    gated = gate * content + (1 - gate) * last  # 7
    moved = np.zeros(rows)  # 8: s(i - j) is the share of the rotation by i - j
    for i in range(rows):
        for j in range(rows):
            for offset in range(-reach, reach + 1):
                if (i - j - offset) % rows == 0:
                    moved[i] += gated[j] * shifts[offset + reach]
    powers = moved**sharpness  # 9
    return powers / powers.sum()


@settings(max_examples=60, deadline=None)
@given(SHAPES, st.integers(0, 10_000))
def test_addressing_equals_the_papers_equations(shape, seed):
    """Peers get the shift, the norm or the order of heads wrong; numbers do not lie."""
    parameters, last_BJN, memory_BMN = draw(shape, seed)

    weights_BJN = addressing.address(parameters, last_BJN, memory_BMN)

    for b in range(shape[0]):
        for j in range(shape[1]):
            own = [value[b, j].numpy() for value in parameters[:5]]
            expected = addressed(*own, last_BJN[b, j].numpy(), memory_BMN[b].numpy().T)
            np.testing.assert_allclose(weights_BJN[b, j].numpy(), expected, atol=1e-12)


@settings(max_examples=30, deadline=None)
@given(SHAPES, st.integers(0, 10_000))
def test_reading_and_writing_equal_the_papers_equations(shape, seed):
    """Every head erases before any head adds, so that the order of heads does not matter."""
    parameters, weights_BJN, memory_BMN = draw(shape, seed)
    batch, heads, rows, _, _ = shape

    reads_BJM = addressing.read(memory_BMN, weights_BJN)
    written_BMN = addressing.write(memory_BMN, weights_BJN, parameters.erase_BWM, parameters.add_BWM)

    for b in range(batch):
        memory, w = memory_BMN[b].numpy().T, weights_BJN[b].numpy()
        erase, add = parameters.erase_BWM[b].numpy(), parameters.add_BWM[b].numpy()
        for j in range(heads):
            np.testing.assert_allclose(reads_BJM[b, j], sum(w[j, i] * memory[i] for i in range(rows)), atol=1e-12)  # 2
        for i in range(rows):
            kept = memory[i] * np.prod([1 - w[j, i] * erase[j] for j in range(heads)], axis=0)  # 3
            expected = kept + sum(w[j, i] * add[j] for j in range(heads))  # 4
            np.testing.assert_allclose(written_BMN[b, :, i], expected, atol=1e-12)


@pytest.mark.parametrize("scale", [1e-8, 1.0, 1e2, 1e4])
@pytest.mark.parametrize("memory", [0.0, 1e-6, 1e4])
def test_everything_stays_finite_at_extremes(scale, memory):
    """NaN after thousands of iterations is the complaint that every public implementation has."""
    torch.manual_seed(0)
    ntm = NtmConfig(memory_rows=6, memory_width=4, read_heads=2)
    raw_BP = (torch.randn(3, addressing.parameter_count(ntm)) * scale).requires_grad_()
    memory_BMN = torch.full((3, 4, 6), memory, requires_grad=True)
    last_BJN = torch.nn.functional.one_hot(torch.tensor([[0, 1, 2]] * 3), 6).float().requires_grad_()

    parameters = addressing.split_parameters(raw_BP, ntm)
    weights_BJN = addressing.address(parameters, last_BJN, memory_BMN)
    after_BMN = addressing.write(memory_BMN, weights_BJN[:, 2:], parameters.erase_BWM, parameters.add_BWM)
    reads_BRM = addressing.read(after_BMN, weights_BJN[:, :2])
    (reads_BRM.square().sum() + weights_BJN.square().sum()).backward()

    assert weights_BJN.isfinite().all() and after_BMN.isfinite().all()
    assert_close(weights_BJN.sum(2), torch.ones(3, 3))
    for value in (raw_BP, memory_BMN, last_BJN):
        assert value.grad.isfinite().all()


def test_parameters_lie_in_the_ranges_of_the_paper():
    """Section 3.3: strength >= 0, gate and erase in (0, 1), shifts a distribution, sharpness >= 1."""
    torch.manual_seed(0)
    ntm = NtmConfig(memory_width=4, read_heads=2, write_heads=3, shift_range=2)
    p = addressing.split_parameters(torch.randn(5, addressing.parameter_count(ntm)) * 3, ntm)

    assert p.key_BJM.shape == (5, 5, 4) and p.erase_BWM.shape == p.add_BWM.shape == (5, 3, 4)
    assert (p.strength_BJ >= 0).all() and (p.sharpness_BJ >= 1).all()
    assert ((p.gate_BJ > 0) & (p.gate_BJ < 1)).all() and ((p.erase_BWM > 0) & (p.erase_BWM < 1)).all()
    assert_close(p.shift_BJS.sum(2), torch.ones(5, 5))


def test_heads_that_start_by_content_make_a_hash_table_of_random_rows():
    """A random key has its weight on few rows of 128 and stays there; neutral heads smear it over all of them."""
    torch.manual_seed(0)
    found = {}
    for start in ("neutral", "content"):
        ntm = NtmConfig(heads_start=start, memory_start="random", read_heads=3)
        raw_BP = 0.1 * torch.randn(16, addressing.parameter_count(ntm)) + addressing.starting_bias(ntm)
        parameters = addressing.split_parameters(raw_BP, ntm)
        memory_BMN = torch.rand(16, 20, 128) - 0.5
        found[start] = addressing.address(parameters, torch.full((16, 4, 128), 1 / 128), memory_BMN).max(2).values

    assert found["content"].median() > 0.25
    assert found["neutral"].max() < 0.1


def test_heads_cannot_start_by_content_on_equal_rows():
    with pytest.raises(ValueError, match=r"Set memory_start to random or learned"):
        NtmConfig(heads_start="content")


def test_a_read_head_of_a_tape_looks_for_what_its_write_head_writes():
    """Its key is the add vector from the first step; write heads keep the keys that they drew."""
    torch.manual_seed(0)
    ntm = NtmConfig(memory_width=4, read_heads=3, write_heads=2, heads_start="tape")
    weight_PH = torch.randn(addressing.parameter_count(ntm), 6)
    before_PH = weight_PH.clone()

    addressing.look_for_what_is_written(weight_PH, ntm)

    emitted = addressing.split_parameters(torch.randn(5, 6) @ weight_PH.t(), ntm)
    assert_close(emitted.key_BJM[:, :3], emitted.add_BWM[:, [0, 1, 0]])
    assert_close(weight_PH[12:], before_PH[12:])


def test_paired_heads_look_for_the_same_and_write_what_they_will():
    torch.manual_seed(0)
    ntm = NtmConfig(memory_width=4, read_heads=3, write_heads=2, paired_heads=True)
    own_Q, rows_P = addressing.shared_rows(ntm)
    emitted = addressing.split_parameters(torch.randn(5, len(own_Q))[:, rows_P], ntm)

    assert len(own_Q) == addressing.parameter_count(ntm) - 2 * (4 + 1 + 1 + 3)
    for shared in (emitted.key_BJM, emitted.strength_BJ, emitted.sharpness_BJ, emitted.shift_BJS):
        assert_close(shared[:, 3:], shared[:, :2])
        assert (shared[:, 0] != shared[:, 1]).all()
    assert (emitted.gate_BJ[:, 3:] != emitted.gate_BJ[:, :2]).all()


def test_heads_that_are_not_paired_share_nothing():
    own_Q, rows_P = addressing.shared_rows(NtmConfig(read_heads=2))

    assert_close(rows_P, torch.arange(addressing.parameter_count(NtmConfig(read_heads=2))))
    assert_close(own_Q, rows_P)


def test_a_write_head_cannot_be_paired_with_none():
    with pytest.raises(ValueError, match=r"Set read_heads to 2 or more"):
        NtmConfig(paired_heads=True, write_heads=2)
