"""How the heads of a Neural Turing Machine address its memory; equation numbers are those of arXiv 1410.5401v2.

All heads at once (axis J = read heads, then write heads); the memory is transposed, [B, M, N]. Everything stays finite for inputs up to 1e4 in magnitude:
norms carry an epsilon under the root, softmax and softplus are the stable ones, sharpening works on logarithms.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from recurra.models.config import NtmConfig

NORM_EPSILON = 1e-6
"""Under the root of each norm: a row of near-zero memory has similarity 0 to every key, and no steep gradient."""
LOG_EPSILON = 1e-16
"""Added to a weight before its logarithm."""


class HeadParameters(NamedTuple):
    """What the controller emits for all heads in one step."""

    key_BJM: Tensor
    """What to look for, in (-1, 1)."""
    strength_BJ: Tensor
    """How much a likeness counts, at least 0."""
    gate_BJ: Tensor
    """1 = address by content, 0 = go on from the last weighting."""
    shift_BJS: Tensor
    """Distribution over the rotations -range ... range."""
    sharpness_BJ: Tensor
    """At least 1."""
    erase_BWM: Tensor
    """Share of each component to take away, in (0, 1)."""
    add_BWM: Tensor
    """What to add, in (-1, 1)."""


def parameter_count(ntm: NtmConfig) -> int:
    """Numbers that the controller emits in one step."""
    return sum(_layout(ntm))


def starting_bias(ntm: NtmConfig) -> Tensor:
    """[P] what the emitted numbers start from, before any weight has a say."""
    bias_P = torch.zeros(parameter_count(ntm))
    if ntm.heads_start == "content":
        # Random keys on random rows make a hash table of the memory once their likeness counts for so much.
        _, _, _, gate, strength, _, shift = torch.split(bias_P, _layout(ntm))
        gate.fill_(2.0)
        strength.fill_(8.0)
        shift.view(-1, 2 * ntm.shift_range + 1)[:, ntm.shift_range] = 3.0
    if ntm.heads_start == "tape":
        # All go on to the next row; half of a read head's weighting is where it finds its key.
        _, _, _, gate, strength, sharpness, shift = torch.split(bias_P, _layout(ntm))
        gate[ntm.read_heads :] = -3.0
        strength[: ntm.read_heads] = 6.0
        sharpness.fill_(1.0)
        shift.view(-1, 2 * ntm.shift_range + 1)[:, ntm.shift_range + 1] = 3.0
    if ntm.heads_start == "queue":
        # All could find their key as well as go on, and stay as well as move to the next row.
        *_, strength, sharpness, shift = torch.split(bias_P, _layout(ntm))
        strength.fill_(6.0)
        sharpness.fill_(1.0)
        shift.view(-1, 2 * ntm.shift_range + 1)[:, ntm.shift_range : ntm.shift_range + 2] = 2.0
    return bias_P


def shared_rows(ntm: NtmConfig) -> tuple[Tensor, Tensor]:
    """Which of the emitted numbers have rows of their own in the heads' matrix, and [P] the row of each: the write heads of
    pairs take theirs from their read heads."""
    rows_P = torch.arange(parameter_count(ntm))
    if ntm.paired_heads:
        key, _, _, _, strength, sharpness, shift = torch.split(rows_P, _layout(ntm))
        for part in (key, strength, sharpness, shift):
            rows_JK = part.view(ntm.read_heads + ntm.write_heads, -1)
            rows_JK[ntm.read_heads :] = rows_JK[: ntm.write_heads]
    own_Q, rows_P = torch.unique(rows_P, return_inverse=True)
    return own_Q, rows_P


def look_for_what_is_written(weight_PH: Tensor, ntm: NtmConfig) -> None:
    """Let read heads begin with the add vectors of write heads as keys: what the controller sees again, it finds where it
    wrote it the first time. In place."""
    key, add, *_ = _layout(ntm)
    key_PH, add_PH, _ = torch.split(weight_PH, [key, add, len(weight_PH) - key - add])
    for head in range(ntm.read_heads):
        _head(key_PH, head, ntm).copy_(_head(add_PH, head % ntm.write_heads, ntm))


def _head(rows: Tensor, head: int, ntm: NtmConfig) -> Tensor:
    return rows[head * ntm.memory_width : (head + 1) * ntm.memory_width]


def split_parameters(raw_BP: Tensor, ntm: NtmConfig) -> HeadParameters:
    """The output of one matrix product, cut into the parameters of all heads and brought into their ranges.

    Layout of P: keys of all heads, add vectors; erase vectors, gates; strengths, sharpnesses; shifts. What goes through
    one function stands side by side: on small batches a step costs what its operations cost to call.
    """
    batch, width, heads = raw_BP.shape[0], ntm.memory_width, ntm.read_heads + ntm.write_heads
    key, add, erase, gate, strength, sharpness, shift = _layout(ntm)
    bounded, shares, positive, shifts = torch.split(raw_BP, [key + add, erase + gate, strength + sharpness, shift], 1)
    keys, adds = torch.split(bounded.tanh(), [key, add], 1)
    erases, gates = torch.split(shares.sigmoid(), [erase, gate], 1)
    strengths, sharpnesses = torch.split(functional.softplus(positive), [strength, sharpness], 1)
    return HeadParameters(
        key_BJM=keys.view(batch, heads, width),
        strength_BJ=strengths,
        gate_BJ=gates,
        shift_BJS=shifts.view(batch, heads, -1).softmax(2),
        sharpness_BJ=1 + sharpnesses,
        erase_BWM=erases.view(batch, -1, width),
        add_BWM=adds.view(batch, -1, width),
    )


def _layout(ntm: NtmConfig) -> list[int]:
    heads, written = ntm.read_heads + ntm.write_heads, ntm.write_heads * ntm.memory_width
    return [heads * ntm.memory_width, written, written, heads, heads, heads, heads * (2 * ntm.shift_range + 1)]


def address(parameters: HeadParameters, last_BJN: Tensor, memory_BMN: Tensor) -> Tensor:
    """Weightings of all heads (figure 2 of the paper: content, interpolation, shift, sharpening)."""
    content_BJN = content_weighting(parameters.key_BJM, parameters.strength_BJ, memory_BMN)
    gated_BJN = interpolate(content_BJN, parameters.gate_BJ, last_BJN)
    return sharpen(shift(gated_BJN, parameters.shift_BJS), parameters.sharpness_BJ)


def content_weighting(key_BJM: Tensor, strength_BJ: Tensor, memory_BMN: Tensor) -> Tensor:
    """Equations 5 and 6: softmax over the rows of strength times cosine similarity."""
    key_norm_BJ = (key_BJM.square().sum(2) + NORM_EPSILON).rsqrt()
    row_norm_B1N = (memory_BMN.square().sum(1, keepdim=True) + NORM_EPSILON).rsqrt()
    scaled_BJM = key_BJM * (strength_BJ * key_norm_BJ)[:, :, None]
    return (torch.bmm(scaled_BJM, memory_BMN) * row_norm_B1N).softmax(2)


def interpolate(content_BJN: Tensor, gate_BJ: Tensor, last_BJN: Tensor) -> Tensor:
    """Equation 7: between the weighting by content and that of the step before."""
    return torch.lerp(last_BJN, content_BJN, gate_BJ[:, :, None])


def shift(weights_BJN: Tensor, shift_BJS: Tensor) -> Tensor:
    """Equation 8: circular convolution, w(i) = sum over j of w(j) s(i - j)."""
    reach = shift_BJS.shape[2] // 2
    shares_BJ1 = shift_BJS.split(1, 2)  # type: ignore[no-untyped-call]
    moved_BJN: Tensor = weights_BJN * shares_BJ1[reach]
    for offset in range(1, reach + 1):
        moved_BJN = torch.addcmul(moved_BJN, weights_BJN.roll(offset, 2), shares_BJ1[reach + offset])
        moved_BJN = torch.addcmul(moved_BJN, weights_BJN.roll(-offset, 2), shares_BJ1[reach - offset])
    return moved_BJN


def sharpen(weights_BJN: Tensor, sharpness_BJ: Tensor) -> Tensor:
    """Equation 9: w to the power of the sharpness, normalised; as a softmax of logarithms."""
    return ((weights_BJN + LOG_EPSILON).log() * sharpness_BJ[:, :, None]).softmax(2)


def read(memory_BMN: Tensor, weights_BRN: Tensor) -> Tensor:
    """Equation 2: one weighted row for each read head, [B, R, M]."""
    return torch.bmm(weights_BRN, memory_BMN.transpose(1, 2))


def write(memory_BMN: Tensor, weights_BWN: Tensor, erase_BWM: Tensor, add_BWM: Tensor) -> Tensor:
    """Equations 3 and 4: every head erases, then every head adds."""
    add_BMW = add_BWM.transpose(1, 2)
    if weights_BWN.shape[1] == 1:
        change_BMN = torch.addcmul(add_BMW, memory_BMN, erase_BWM.transpose(1, 2), value=-1)
        return torch.addcmul(memory_BMN, weights_BWN, change_BMN)
    kept_BMN = (1 - erase_BWM[:, :, :, None] * weights_BWN[:, :, None, :]).prod(1)
    return torch.baddbmm(memory_BMN * kept_BMN, add_BMW, weights_BWN)
