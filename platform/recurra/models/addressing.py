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


def split_parameters(raw_BP: Tensor, ntm: NtmConfig) -> HeadParameters:
    """The output of one matrix product, cut into the parameters of all heads and brought into their ranges.

    Layout of P: keys of all heads, strengths, gates, sharpnesses, shifts, erase vectors, add vectors.
    """
    batch = raw_BP.shape[0]
    key, strength, gate, sharpness, shift, erase, add = torch.split(raw_BP, _layout(ntm), 1)
    return HeadParameters(
        key_BJM=key.tanh().view(batch, -1, ntm.memory_width),
        strength_BJ=functional.softplus(strength),
        gate_BJ=gate.sigmoid(),
        shift_BJS=shift.view(batch, -1, 2 * ntm.shift_range + 1).softmax(2),
        sharpness_BJ=1 + functional.softplus(sharpness),
        erase_BWM=erase.sigmoid().view(batch, -1, ntm.memory_width),
        add_BWM=add.tanh().view(batch, -1, ntm.memory_width),
    )


def _layout(ntm: NtmConfig) -> list[int]:
    heads, written = ntm.read_heads + ntm.write_heads, ntm.write_heads * ntm.memory_width
    return [heads * ntm.memory_width, heads, heads, heads, heads * (2 * ntm.shift_range + 1), written, written]


def address(parameters: HeadParameters, last_BJN: Tensor, memory_BMN: Tensor) -> Tensor:
    """Weightings of all heads (figure 2 of the paper: content, interpolation, shift, sharpening)."""
    content_BJN = content_weighting(parameters.key_BJM, parameters.strength_BJ, memory_BMN)
    gated_BJN = interpolate(content_BJN, parameters.gate_BJ, last_BJN)
    return sharpen(shift(gated_BJN, parameters.shift_BJS), parameters.sharpness_BJ)


def content_weighting(key_BJM: Tensor, strength_BJ: Tensor, memory_BMN: Tensor) -> Tensor:
    """Equations 5 and 6: softmax over the rows of strength times cosine similarity."""
    key_norm_BJ = (key_BJM.square().sum(2) + NORM_EPSILON).rsqrt()
    row_norm_BN = (memory_BMN.square().sum(1) + NORM_EPSILON).rsqrt()
    dots_BJN = torch.bmm(key_BJM, memory_BMN)
    return (dots_BJN * (strength_BJ * key_norm_BJ)[:, :, None] * row_norm_BN[:, None, :]).softmax(2)


def interpolate(content_BJN: Tensor, gate_BJ: Tensor, last_BJN: Tensor) -> Tensor:
    """Equation 7: between the weighting by content and that of the step before."""
    return torch.lerp(last_BJN, content_BJN, gate_BJ[:, :, None])


def shift(weights_BJN: Tensor, shift_BJS: Tensor) -> Tensor:
    """Equation 8: circular convolution, w(i) = sum over j of w(j) s(i - j)."""
    reach = shift_BJS.shape[2] // 2
    terms = [weights_BJN.roll(offset, 2) * shift_BJS[:, :, offset + reach, None] for offset in range(-reach, reach + 1)]
    return torch.stack(terms).sum(0)


def sharpen(weights_BJN: Tensor, sharpness_BJ: Tensor) -> Tensor:
    """Equation 9: w to the power of the sharpness, normalised; as a softmax of logarithms."""
    return ((weights_BJN.clamp(min=0) + LOG_EPSILON).log() * sharpness_BJ[:, :, None]).softmax(2)


def read(memory_BMN: Tensor, weights_BRN: Tensor) -> Tensor:
    """Equation 2: one weighted row for each read head, [B, R, M]."""
    return torch.bmm(weights_BRN, memory_BMN.transpose(1, 2))


def write(memory_BMN: Tensor, weights_BWN: Tensor, erase_BWM: Tensor, add_BWM: Tensor) -> Tensor:
    """Equations 3 and 4: every head erases, then every head adds."""
    if weights_BWN.shape[1] == 1:
        kept_BMN = 1 - erase_BWM.transpose(1, 2) * weights_BWN
    else:
        kept_BMN = (1 - erase_BWM[:, :, :, None] * weights_BWN[:, :, None, :]).prod(1)
    return torch.baddbmm(memory_BMN * kept_BMN, add_BWM.transpose(1, 2), weights_BWN)
