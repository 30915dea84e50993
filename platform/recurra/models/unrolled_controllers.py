"""Controllers of a Neural Turing Machine step by step over a window, with gradients written by hand; for `unrolled.py`.

What a step knows is [h | reads], the order of the outputs; recurrent weights are brought into it once a window.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from recurra.models.native.ntm import CONTROLLERS, Sizes


class Unrolled(ABC):
    """Base: buffers of one window.

    Args:
        sizes: Of the machine.
        projected_TBG: The features' share of the pre-activations.
        weight_GK: For [h | reads]; without h where the controller keeps none.
        known: [B, H + R * M] before each step and after the last; `advance` fills the h of the next one.
    """

    def __init__(self, sizes: Sizes, projected_TBG: Tensor, weight_GK: Tensor, known: Sequence[Tensor]) -> None:
        size = sizes.hidden
        self.sizes = sizes
        self.projected = projected_TBG.unbind(0)
        self.weight = weight_GK
        self.turned = weight_GK.t()
        self.known = known
        self.h = [step[:, :size] for step in known]
        self.act_TBG = torch.empty_like(projected_TBG)
        self.act = self.act_TBG.unbind(0)
        self.d_gates_TBG = projected_TBG.new_empty(0)
        """Gradient of the pre-activations, as the features' share and the reads see it."""

    @abstractmethod
    def advance(self, t: int) -> None:
        """Output of step t from what it knows."""

    @abstractmethod
    def prepare(self, known_TBK: Tensor) -> None:
        """Everything of the backward pass that needs no gradient, for all steps at once."""

    @abstractmethod
    def retreat(self, t: int, d_h_BH: Tensor, d_through_BK: Tensor) -> Tensor:
        """Gradient of what step t knew, [B, H + R * M], `d_through_BK` included; sets the gradient of its gates."""

    def d_weight(self, known_NK: Tensor) -> Tensor:
        """Gradient of the weights, from what all steps knew."""
        return self.d_gates_TBG.flatten(0, 1).t() @ known_NK


class UnrolledLstm(Unrolled):
    """`cell` [B, H] before each step and after the last."""

    def __init__(
        self, sizes: Sizes, projected_TBG: Tensor, weight_GK: Tensor, known: Sequence[Tensor], cell_BH: Tensor
    ) -> None:
        super().__init__(sizes, projected_TBG, weight_GK, known)
        size, steps = sizes.hidden, len(known) - 1
        self.cell_TBH = cell_BH.new_empty(steps + 1, *cell_BH.shape)
        self.cell_TBH[0] = cell_BH
        self.cell = self.cell_TBH.unbind(0)
        self.squashed_TBH = torch.empty_like(self.cell_TBH[1:])
        self.squashed = self.squashed_TBH.unbind(0)
        self.doors = self.act_TBG[..., : 2 * size].unbind(0)
        self.entry, self.forget, self.fresh, self.out = (part.unbind(0) for part in self.act_TBG.chunk(4, 2))
        self.d_cell = torch.empty(0)

    def advance(self, t: int) -> None:
        torch.addmm(self.projected[t], self.known[t], self.turned, out=self.act[t])
        self.doors[t].sigmoid_()
        self.fresh[t].tanh_()
        self.out[t].sigmoid_()
        cell = torch.mul(self.forget[t], self.cell[t], out=self.cell[t + 1])
        cell.addcmul_(self.entry[t], self.fresh[t])
        torch.mul(self.out[t], torch.tanh(cell, out=self.squashed[t]), out=self.h[t + 1])

    def prepare(self, known_TBK: Tensor) -> None:
        entry, forget, fresh, out = self.act_TBG.chunk(4, 2)
        inner = (fresh * entry * (1 - entry), self.cell_TBH[:-1] * forget * (1 - forget), entry * (1 - fresh.square()))
        self.inner = torch.stack(inner, 2).unbind(0)
        self.outer = (self.squashed_TBH * out * (1 - out)).unbind(0)
        self.told = (out * (1 - self.squashed_TBH.square())).unbind(0)
        size, batch = self.sizes.hidden, known_TBK.shape[1]
        self.d_gates_TBG = torch.empty_like(self.act_TBG)
        self.d_gates = self.d_gates_TBG.unbind(0)
        self.d_inner = self.d_gates_TBG[..., : 3 * size].view(-1, batch, 3, size).unbind(0)
        self.d_outer = self.d_gates_TBG[..., 3 * size :].unbind(0)

    def retreat(self, t: int, d_h_BH: Tensor, d_through_BK: Tensor) -> Tensor:
        self.d_cell.addcmul_(d_h_BH, self.told[t])
        torch.mul(self.d_cell[:, None], self.inner[t], out=self.d_inner[t])
        torch.mul(d_h_BH, self.outer[t], out=self.d_outer[t])
        self.d_cell.mul_(self.forget[t])
        return torch.addmm(d_through_BK, self.d_gates[t], self.weight)


class UnrolledGru(Unrolled):
    """The product with the last output stands apart, since the reset gate acts on its share of the new gate."""

    def __init__(self, sizes: Sizes, projected_TBG: Tensor, weight_GK: Tensor, known: Sequence[Tensor]) -> None:
        super().__init__(sizes, projected_TBG, weight_GK, known)
        size = sizes.hidden
        self.reads = [step[:, size:] for step in known]
        self.own_TBG = torch.empty_like(projected_TBG)
        self.own = self.own_TBG.unbind(0)
        self.doors = self.act_TBG[..., : 2 * size].unbind(0)
        self.reset, self.update, self.fresh = (part.unbind(0) for part in self.act_TBG.chunk(3, 2))

    def advance(self, t: int) -> None:
        size = self.sizes.hidden
        torch.mm(self.h[t], self.turned[:size], out=self.own[t])
        torch.addmm(self.projected[t], self.reads[t], self.turned[size:], out=self.act[t])
        self.doors[t].add_(self.own[t][:, : 2 * size]).sigmoid_()
        self.fresh[t].addcmul_(self.reset[t], self.own[t][:, 2 * size :]).tanh_()
        torch.lerp(self.fresh[t], self.h[t], self.update[t], out=self.h[t + 1])

    def prepare(self, known_TBK: Tensor) -> None:
        size = self.sizes.hidden
        reset, update, fresh = self.act_TBG.chunk(3, 2)
        h_TBH = known_TBK[:-1, :, :size]
        new = (1 - update) * (1 - fresh.square())
        own = self.own_TBG[..., 2 * size :]
        factors = (new * own * reset * (1 - reset), (h_TBH - fresh) * update * (1 - update), new, new * reset)
        self.factors = torch.stack(factors, 2).unbind(0)
        both = self.act_TBG.new_empty(*self.act_TBG.shape[:2], 4, size)
        self.d_four = both.unbind(0)
        self.d_gates_TBG = both[:, :, :3].flatten(2)
        self.d_both_TBG = both

    def retreat(self, t: int, d_h_BH: Tensor, d_through_BK: Tensor) -> Tensor:
        size = self.sizes.hidden
        d_four = torch.mul(d_h_BH[:, None], self.factors[t], out=self.d_four[t])
        d_own_BG = torch.cat([d_four[:, :2].flatten(1), d_four[:, 3]], 1)
        d_h = torch.addmm(d_h_BH * self.update[t], d_own_BG, self.weight[:, :size])
        d_reads = d_four[:, :3].flatten(1) @ self.weight[:, size:]
        return d_through_BK + torch.cat([d_h, d_reads], 1)

    def d_weight(self, known_NK: Tensor) -> Tensor:
        size = self.sizes.hidden
        d_four = self.d_both_TBG.flatten(0, 1)
        self.d_gates_TBG = self.d_both_TBG[:, :, :3].flatten(2)
        d_own = torch.cat([d_four[:, :2].flatten(1), d_four[:, 3]], 1)
        return torch.cat([d_own.t() @ known_NK[:, :size], d_four[:, :3].flatten(1).t() @ known_NK[:, size:]], 1)


class UnrolledFeedForward(Unrolled):
    """One tanh layer, whose only past is in the reads."""

    def advance(self, t: int) -> None:
        torch.addmm(self.projected[t], self.known[t][:, self.sizes.hidden :], self.turned, out=self.act[t])
        torch.tanh(self.act[t], out=self.h[t + 1])

    def prepare(self, known_TBK: Tensor) -> None:
        self.slope = (1 - known_TBK[1:, :, : self.sizes.hidden].square()).unbind(0)
        self.d_gates_TBG = torch.empty_like(self.act_TBG)
        self.d_gates = self.d_gates_TBG.unbind(0)

    def retreat(self, t: int, d_h_BH: Tensor, d_through_BK: Tensor) -> Tensor:
        torch.mul(d_h_BH, self.slope[t], out=self.d_gates[t])
        d_known = d_through_BK.clone()
        d_known[:, self.sizes.hidden :].addmm_(self.d_gates[t], self.weight)
        return d_known

    def d_weight(self, known_NK: Tensor) -> Tensor:
        return super().d_weight(known_NK[:, self.sizes.hidden :])


def unroll(
    sizes: Sizes, projected_TBG: Tensor, weight_GK: Tensor, known: Sequence[Tensor], cell: Tensor | None
) -> Unrolled:
    """The controller of these sizes over a window; `weight_GK` in the order of the parameters, [reads | h]."""
    reads = sizes.read_heads * sizes.width
    weight_GK = torch.cat([weight_GK[:, reads:], weight_GK[:, :reads]], 1)
    if sizes.controller == CONTROLLERS["lstm"]:
        assert cell is not None
        return UnrolledLstm(sizes, projected_TBG, weight_GK, known, cell)
    made = UnrolledGru if sizes.controller == CONTROLLERS["gru"] else UnrolledFeedForward
    return made(sizes, projected_TBG, weight_GK, known)
