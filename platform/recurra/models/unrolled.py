"""A window of a Neural Turing Machine on torch's operations, with gradients written by hand: the way without native kernels,
on any device.

On small batches a step costs what its operations cost to call. So the backward pass is one node of the graph, whatever can
be had for all steps at once is one operation, results go where they are wanted, and sums of products are matrix products.
The equations are those of `addressing.py`, to which tests hold this file.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from recurra.models import addressing
from recurra.models.addressing import LOG_EPSILON, NORM_EPSILON
from recurra.models.native.ntm import STATE_SIZE, Sizes, State, Weights
from recurra.models.unrolled_controllers import UnrolledLstm, unroll

KEPT_WINDOWS = 8
"""Batch sizes for which a `StepInPlace` keeps buffers."""


def run(
    sizes: Sizes,
    x_TBD: Tensor,
    weights: Weights,
    state: State,
    real_TB: Tensor | None,
    limit: float | None = None,
) -> tuple[Tensor, State]:
    """`y_TBH`, arbitrary in padding, and the state after each row's last real step; all in one float type.

    Args:
        sizes: Of the machine.
        x_TBD: Features of at least one step, time first.
        weights: Parameters.
        state: Before the first step, in the kernel's order; read, never written.
        real_TB: True at real steps; None = all.
        limit: Largest absolute value of one number of the state's gradient between two steps; None = any.
    """
    arguments = (x_TBD, *weights, *state)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in arguments):
        y_TBH, *end = _Unrolled.apply(sizes, real_TB, limit, *arguments)  # type: ignore[no-untyped-call]
        return y_TBH, tuple(end)
    with torch.no_grad():
        window = _Window(sizes, x_TBD, weights, state, real_TB)
        window.forward()
        return window.outputs(), window.end()


class StepInPlace:
    """As `native.ntm.StepInPlace`: single steps, in buffers that are used again.

    Args:
        sizes: Of the machine.
        weights: Read at each step.
        head: Matrix [K, H + R * M] and bias [K] of the output layer.
        state: Tensors [S, ...]; every call reads and writes the rows that it names.
    """

    def __init__(self, sizes: Sizes, weights: Weights, head: tuple[Tensor, Tensor], state: State) -> None:
        self._sizes = sizes
        self._weights = Weights(*(t.detach() for t in weights))
        self._head, self._head_bias = (t.detach() for t in head)
        self._state = state
        self._windows: dict[int, tuple[_Window, list[Tensor], list[Tensor]]] = {}

    def __call__(self, x_BD: Tensor, rows: Sequence[int]) -> Tensor:
        """The outputs [B, K] for the sequences in some rows."""
        with torch.inference_mode():
            window, before, after = self._window(len(rows), x_BD)
            index_B = torch.tensor(rows, device=x_BD.device) if len(rows) > 1 else None
            held = [value for value in self._state if value is not None]
            for place, value in zip(before, held, strict=True):
                place.copy_(value[rows[0]] if index_B is None else value.index_select(0, index_B))
            torch.addmm(self._weights.bias, x_BD, self._weights.features.t(), out=window.controller.projected[0])
            window.forward()
            for part, value in zip(after, held, strict=True):
                if index_B is None:
                    value[rows[0]].copy_(part[0])
                else:
                    value.index_copy_(0, index_B, part)
            return torch.addmm(self._head_bias, window.known[1], self._head.t())

    def _window(self, batch: int, x_BD: Tensor) -> tuple[_Window, list[Tensor], list[Tensor]]:
        """A window of one step, and the parts of the state before and after it."""
        if batch not in self._windows:
            if len(self._windows) >= KEPT_WINDOWS:
                self._windows.clear()
            start = [None if t is None else t[:1].expand(batch, *t.shape[1:]) for t in self._state]
            window = _Window(self._sizes, x_BD[None], self._weights, tuple(start), None)
            self._windows[batch] = (window, window.parts(0), window.parts(1))
        return self._windows[batch]


class _Unrolled(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, sizes: Sizes, real_TB: Tensor | None, limit: float | None, *arguments: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        x_TBD, *rest = (None if t is None else t.detach() for t in arguments)
        assert x_TBD is not None
        window = _Window(sizes, x_TBD, Weights(*rest[:5]), tuple(rest[5:]), real_TB)  # type: ignore[arg-type]
        window.forward()
        ctx.save_for_backward(*arguments[:6])
        ctx.window, ctx.limit = window, limit
        return window.outputs(), *window.end()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_y_TBH: Tensor, *d_end: Tensor | None) -> tuple[Tensor | None, ...]:
        ctx.window.weights = Weights(*ctx.saved_tensors[1:])  # raises where a parameter was changed in between
        wants_x = ctx.needs_input_grad[3]
        gradients: list[Tensor | None] = ctx.window.backward(d_y_TBH, d_end, limit=ctx.limit, wants_x=wants_x)
        return None, None, None, *gradients


class _Rotation:
    """Weightings with so many of their last and first places before and behind them, for equation 8.

    Args:
        wide_TBJN: Room for them.
        reach: Places on each side.
    """

    def __init__(self, wide_TBJN: Tensor, reach: int) -> None:
        places = wide_TBJN.shape[3] - 2 * reach
        self._near = reach <= places
        self._wide = wide_TBJN.unbind(0)
        self._order = (torch.arange(places + 2 * reach, device=wide_TBJN.device) - reach) % places
        self.windows = wide_TBJN.unfold(3, places, 1).unbind(0)
        """[B, J, S, N] for each step: the weighting as it was turned, from offset `reach` to `-reach`."""
        self.slices = [wide_TBJN[..., s : s + places].unbind(0) for s in range(2 * reach + 1)]
        """The same, for each offset and step."""
        self.middle = self.slices[reach]
        self._left, self._right = wide_TBJN[..., :reach].unbind(0), wide_TBJN[..., places + reach :].unbind(0)
        self._first = wide_TBJN[..., reach : 2 * reach].unbind(0)
        self._last = wide_TBJN[..., places : places + reach].unbind(0)

    def wrap(self, t: int) -> None:
        """Fill both sides from the middle."""
        if self._near:
            self._left[t].copy_(self._last[t])
            self._right[t].copy_(self._first[t])
        else:  # a shift further than once around
            self._wide[t].copy_(self.middle[t][..., self._order])


class _Window:
    """Buffers of one window: one tensor for all steps, and a list of each step's part of it."""

    def __init__(self, sizes: Sizes, x_TBD: Tensor, weights: Weights, state: State, real_TB: Tensor | None) -> None:
        memory, read_weights, write_weights, reads, h, cell = state
        assert memory is not None and read_weights is not None and write_weights is not None and reads is not None
        self.sizes, self.x_TBD, self.weights = sizes, x_TBD, weights
        self.steps, self.batch = x_TBD.shape[:2]
        self.heads, self.shifts = sizes.read_heads + sizes.write_heads, 2 * sizes.reach + 1
        self.reads_size = sizes.read_heads * sizes.width
        self.has_h = h is not None
        self.real_TB11 = None if real_TB is None else real_TB[:, :, None, None]
        self.whole_steps = self.steps if real_TB is None else int(real_TB.all(1).sum())
        T, B, J, N, M = self.steps, self.batch, self.heads, sizes.rows, sizes.width

        self.known_TBK = self._empty(T + 1, B, sizes.hidden + self.reads_size)
        self.known_TBK[0, :, : sizes.hidden] = 0 if h is None else h
        self.known_TBK[0, :, sizes.hidden :] = reads.flatten(1)
        self.known = self.known_TBK.unbind(0)
        self.reads = self.known_TBK[..., sizes.hidden :].view(T + 1, B, sizes.read_heads, M).unbind(0)
        self.weights_TBJN = self._empty(T + 1, B, J, N)
        torch.cat([read_weights, write_weights], 1, out=self.weights_TBJN[0])
        self.weightings = self.weights_TBJN.unbind(0)
        self.memory_TBMN = self._empty(T + 1, B, M, N)
        self.memory_TBMN[0] = memory
        self.memory = self.memory_TBMN.unbind(0)
        projected_TBG = functional.linear(x_TBD, weights.features, weights.bias)
        self.controller = unroll(sizes, projected_TBG, weights.recurrent, self.known, cell)
        self._place_emitted()
        self._place_addressing()

    def _empty(self, *shape: int) -> Tensor:
        return self.x_TBD.new_empty(shape, dtype=self.weights.heads.dtype)

    def _place_emitted(self) -> None:
        sizes, J, M = self.sizes, self.heads, self.sizes.width
        written = sizes.write_heads * M
        self.emitted_TBP = self._empty(self.steps, self.batch, self.weights.heads.shape[0])
        parts = self.emitted_TBP.split([J * M, written, written, J, J, J, J * self.shifts], 2)  # type: ignore[no-untyped-call]
        self.bounded_end, self.shares_end = J * M + written, J * M + 2 * written + J
        self.own_end = self.shares_end + 2 * J
        self.emitted = self.emitted_TBP.unbind(0)
        self.bounded = self.emitted_TBP[..., : self.bounded_end].unbind(0)
        self.shares = self.emitted_TBP[..., self.bounded_end : self.shares_end].unbind(0)
        self.positive = self.emitted_TBP[..., self.shares_end : self.own_end].unbind(0)
        self.key_TBJM = parts[0].view(self.steps, self.batch, J, M)
        self.add_TBWM, self.erase_TBWM = (p.view(self.steps, self.batch, sizes.write_heads, M) for p in parts[1:3])
        self.key, self.add, self.erase = self.key_TBJM.unbind(0), self.add_TBWM.unbind(0), self.erase_TBWM.unbind(0)
        self.gate_TBJ1, self.strength_TBJ1, self.sharpness_TBJ1 = (part[..., None] for part in parts[3:6])
        self.gate, self.strength = self.gate_TBJ1.unbind(0), self.strength_TBJ1.unbind(0)
        self.sharpness = self.sharpness_TBJ1.unbind(0)
        self.shift = parts[6].view(self.steps, self.batch, J, self.shifts).unbind(0)

    def _place_addressing(self) -> None:
        T, B, J, N, M, S = self.steps, self.batch, self.heads, self.sizes.rows, self.sizes.width, self.shifts
        self.key_norm_TBJ1, self.row_norm_TB1N = self._empty(T, B, J, 1), self._empty(T, B, 1, N)
        self.key_norm, self.row_norm = self.key_norm_TBJ1.unbind(0), self.row_norm_TB1N.unbind(0)
        self.unit_key = self._empty(T, B, J, M).unbind(0)
        self.cosine_TBJN, self.content_TBJN, self.shifted_TBJN, self.logs_TBJN = self._empty(4, T, B, J, N).unbind(0)
        self.cosine, self.content = self.cosine_TBJN.unbind(0), self.content_TBJN.unbind(0)
        self.shifted, self.logs = self.shifted_TBJN.unbind(0), self.logs_TBJN.unbind(0)
        share_TBJS = self._empty(T, B, J, S)
        self.share = share_TBJS.unbind(0)
        self.share_of = [share_TBJS[..., s : s + 1].unbind(0) for s in range(S)]
        self.wide = _Rotation(self._empty(T, B, J, N + S - 1), self.sizes.reach)

    # Forwards.

    def forward(self) -> None:
        turned_heads = self.weights.heads.t()
        for t in range(self.steps):
            self.controller.advance(t)
            torch.addmm(self.weights.heads_bias, self.controller.h[t + 1], turned_heads, out=self.emitted[t])
            self.bounded[t].tanh_()
            self.shares[t].sigmoid_()
            torch._C._nn.softplus(self.positive[t], out=self.positive[t])  # type: ignore[call-arg]
            torch.softmax(self.shift[t], 2, out=self.share[t])
            self._address(t)
            self._read_and_write(t)
            if t >= self.whole_steps:
                self._keep_what_has_ended(t)

    def _address(self, t: int) -> None:
        """Equations 5 to 9."""
        memory, key = self.memory[t], self.key[t]
        key_norm = torch.sum(key * key, 2, keepdim=True, out=self.key_norm[t]).add_(NORM_EPSILON).rsqrt_()
        row_norm = torch.sum(memory * memory, 1, keepdim=True, out=self.row_norm[t]).add_(NORM_EPSILON).rsqrt_()
        unit_key = torch.mul(key, key_norm, out=self.unit_key[t])
        cosine = torch.bmm(unit_key, memory, out=self.cosine[t]).mul_(row_norm)
        content = torch.softmax(cosine * self.strength[t], 2, out=self.content[t])
        torch.lerp(self.weightings[t], content, self.gate[t], out=self.wide.middle[t])
        self.wide.wrap(t)
        shifted = torch.mul(self.wide.slices[-1][t], self.share_of[0][t], out=self.shifted[t])
        for offset in range(1, self.shifts):
            shifted.addcmul_(self.wide.slices[-1 - offset][t], self.share_of[offset][t])
        logs = torch.log(shifted.add_(LOG_EPSILON), out=self.logs[t])
        torch.softmax(torch.addcmul(logs, logs, self.sharpness[t]), 2, out=self.weightings[t + 1])

    def _read_and_write(self, t: int) -> None:
        """Equations 2 to 4."""
        memory, weights, reading = self.memory[t], self.weightings[t + 1], self.sizes.read_heads
        torch.bmm(weights[:, :reading], memory.mT, out=self.reads[t + 1])
        if self.sizes.write_heads == 1:
            change = torch.addcmul(self.add[t].mT, memory, self.erase[t].mT, value=-1)
            torch.addcmul(memory, weights[:, reading:], change, out=self.memory[t + 1])
        else:
            self.memory[t + 1].copy_(addressing.write(memory, weights[:, reading:], self.erase[t], self.add[t]))

    def _state(self) -> list[Tensor]:
        """What goes on from step to step, [T + 1, B, ...]."""
        cells = [self.controller.cell_TBH] if isinstance(self.controller, UnrolledLstm) else []
        return [self.memory_TBMN, self.weights_TBJN, self.known_TBK, *cells]

    def parts(self, t: int) -> list[Tensor]:
        """The state before step t, in the kernel's order, in the window's own memory."""
        size, reading = self.sizes.hidden, self.sizes.read_heads
        memory, weights, known, *cells = (value[t] for value in self._state())
        own = [memory, weights[:, :reading], weights[:, reading:], self.reads[t]]
        return [*own, *([known[:, :size]] if self.has_h else []), *cells]

    def _keep_what_has_ended(self, t: int) -> None:
        assert self.real_TB11 is not None
        for value in self._state():
            real = self.real_TB11[t].view(-1, *[1] * (value.dim() - 2))
            torch.where(real, value[t + 1], value[t], out=value[t + 1])

    def outputs(self) -> Tensor:
        return self.known_TBK[1:]

    def end(self) -> State:
        parts: list[Tensor | None] = [part.clone(memory_format=torch.contiguous_format) for part in self.parts(-1)]
        return (*parts, *[None] * (STATE_SIZE - len(parts)))

    # Backwards.

    def backward(self, d_y_TBH: Tensor, d_end: State, *, limit: float | None, wants_x: bool) -> list[Tensor | None]:
        """Gradients of features, weights and state, in the order of `Weights` and of the state."""
        d_memory, d_read, d_write, d_reads, d_h, d_cell = d_end
        assert d_memory is not None and d_read is not None and d_write is not None and d_reads is not None
        self.controller.prepare(self.known_TBK)
        if isinstance(self.controller, UnrolledLstm):
            assert d_cell is not None
            self.controller.d_cell = d_cell.clone()
        self._prepare()
        d_memory, d_weights = d_memory.clone(), torch.cat([d_read, d_write], 1)
        size = self.sizes.hidden
        d_known = d_y_TBH[-1].clone()
        if d_h is not None:
            d_known[:, :size] += d_h
        d_known[:, size:] += d_reads.flatten(1)
        through = [torch.zeros_like(d_known), *d_y_TBH[:-1].unbind(0)]
        for t in reversed(range(self.steps)):
            kept = self._set_aside(t, [d_memory, d_weights, d_known]) if t >= self.whole_steps else []
            if limit is None:
                d_weights, d_known = self._retreat(t, d_memory, d_weights, d_known, through[t])
            else:
                d_weights, d_known = self._retreat(t, d_memory, d_weights, d_known, through[0])
                for value in (d_memory, d_weights, d_known, *self._d_cells()):
                    value.clamp_(-limit, limit)
                d_known = d_known + through[t]
            for value, part in zip([d_memory, d_weights, d_known, *self._d_cells()], kept, strict=bool(kept)):
                value += part
        return self._collect(d_memory, d_weights, d_known, wants_x=wants_x)

    def _d_cells(self) -> list[Tensor]:
        return [self.controller.d_cell] if isinstance(self.controller, UnrolledLstm) else []

    def _set_aside(self, t: int, gradients: list[Tensor]) -> list[Tensor]:
        """Take the gradients of rows that have ended out of a step; they go to the step before as they are."""
        assert self.real_TB11 is not None
        kept = []
        for value in [*gradients, *self._d_cells()]:
            real = self.real_TB11[t].view(-1, *[1] * (value.dim() - 1))
            kept.append(value.masked_fill(real, 0))
            value.masked_fill_(~real, 0)
        return kept

    def _prepare(self) -> None:
        """Everything that needs no gradient, for all steps at once."""
        p, size = self.emitted_TBP, self.sizes.write_heads * self.sizes.width
        bounded, shares = p[..., : self.bounded_end], p[..., self.bounded_end : self.shares_end]
        slope = torch.cat(
            [1 - bounded.square(), shares * (1 - shares), -torch.expm1(-p[..., self.shares_end : self.own_end])], 2
        )
        slope[
            ..., self.bounded_end : self.bounded_end + size
        ] *= -1  # of an erase gate: its gradient comes without sign
        self.slope = slope.unbind(0)
        self.difference = (self.content_TBJN - self.weights_TBJN[:-1]).unbind(0)
        self.steepness = ((1 + self.sharpness_TBJ1) / self.shifted_TBJN).unbind(0)
        self.scale = (self.strength_TBJ1 * self.row_norm_TB1N).unbind(0)
        self.shrink = (-self.row_norm_TB1N.square()).unbind(0)
        T, B, J, M = self.steps, self.batch, self.heads, self.sizes.width
        self.d_wide = _Rotation(self._empty(1, B, J, self.sizes.rows + self.shifts - 1), self.sizes.reach)
        self.d_emitted_TBP = torch.empty_like(self.emitted_TBP)
        self.d_emitted = self.d_emitted_TBP.unbind(0)
        self.d_own = self.d_emitted_TBP[..., : self.own_end].unbind(0)
        written = self.sizes.write_heads * M
        parts = self.d_emitted_TBP.split([J * M, written, written, J, J, J, J * self.shifts], 2)  # type: ignore[no-untyped-call]
        self.d_key = parts[0].view(T, B, J, M).unbind(0)
        self.d_add, self.d_erase = (part.view(T, B, -1, M).unbind(0) for part in parts[1:3])
        self.d_gate, self.d_strength, self.d_sharpness = (part.unbind(0) for part in parts[3:6])
        self.d_shift = parts[6].view(T, B, J, self.shifts).unbind(0)

    def _retreat(
        self, t: int, d_memory: Tensor, d_weights: Tensor, d_known: Tensor, through: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Gradients before step t from those after it, that of the memory in place."""
        size, reading, memory = self.sizes.hidden, self.sizes.read_heads, self.memory[t]
        weights = self.weightings[t + 1]
        d_reads = d_known[:, size:].view(self.batch, reading, -1)
        d_written = self._retreat_write(t, d_memory)
        d_weights = d_weights + torch.cat([torch.bmm(d_reads, memory), d_written], 1)
        d_memory.baddbmm_(d_reads.mT, weights[:, :reading])
        d_gated = self._retreat_shift(t, _softmax_backward(d_weights, weights))
        torch.sum(d_gated * self.difference[t], 2, out=self.d_gate[t])
        d_content = d_gated * self.gate[t]
        self._retreat_content(t, _softmax_backward(d_content, self.content[t]), d_memory)
        self.d_own[t].mul_(self.slope[t])
        d_h = torch.addmm(d_known[:, :size], self.d_emitted[t], self.weights.heads)
        return d_gated.sub_(d_content), self.controller.retreat(t, d_h, through)

    def _retreat_write(self, t: int, d_memory: Tensor) -> Tensor:
        """Gradient of the writing heads' weightings."""
        memory, reading = self.memory[t], self.sizes.read_heads
        weights = self.weightings[t + 1][:, reading:]
        if self.sizes.write_heads > 1:
            held = [value.detach().requires_grad_() for value in (memory, weights, self.erase[t], self.add[t])]
            with torch.enable_grad():
                after = addressing.write(*held)
            d_before, d_written, d_erase, d_add = torch.autograd.grad(after, held, d_memory)
            d_memory.copy_(d_before)
            torch.neg(d_erase, out=self.d_erase[t])
            self.d_add[t].copy_(d_add)
            return d_written
        along = d_memory * memory
        d_written = torch.baddbmm(torch.bmm(self.add[t], d_memory), self.erase[t], along, alpha=-1)
        torch.bmm(weights, d_memory.mT, out=self.d_add[t])
        torch.bmm(weights, along.mT, out=self.d_erase[t])
        d_memory.addcmul_(d_memory * weights, self.erase[t].mT, value=-1)
        return d_written

    def _retreat_shift(self, t: int, d_logits: Tensor) -> Tensor:
        """Gradient of the gated weighting from that of what the last softmax was taken of."""
        torch.sum(d_logits * self.logs[t], 2, out=self.d_sharpness[t])
        d_shifted = torch.mul(d_logits, self.steepness[t], out=self.d_wide.middle[0])
        self.d_wide.wrap(0)
        d_share = (self.wide.windows[t] * d_shifted[:, :, None]).sum(3).flip(2)
        self.d_shift[t].copy_(_softmax_backward(d_share, self.share[t]))
        d_gated = self.d_wide.slices[0][0] * self.share_of[0][t]
        for offset in range(1, self.shifts):
            d_gated.addcmul_(self.d_wide.slices[offset][0], self.share_of[offset][t])
        return d_gated

    def _retreat_content(self, t: int, d_logits: Tensor, d_memory: Tensor) -> None:
        memory, unit_key, strength = self.memory[t], self.unit_key[t], self.strength[t]
        product = d_logits * self.cosine[t]
        torch.sum(product, 2, out=self.d_strength[t])
        shrink = torch.bmm(strength.mT, product).mul_(self.shrink[t])
        d_dots = d_logits * self.scale[t]
        d_unit = torch.bmm(d_dots, memory.mT)
        d_memory.baddbmm_(unit_key.mT, d_dots).addcmul_(memory, shrink)
        towards = self.d_strength[t][:, :, None] * strength  # what a longer key would do
        torch.mul(torch.addcmul(d_unit, unit_key, towards, value=-1), self.key_norm[t], out=self.d_key[t])

    def _collect(self, d_memory: Tensor, d_weights: Tensor, d_known: Tensor, *, wants_x: bool) -> list[Tensor | None]:
        size, reading = self.sizes.hidden, self.sizes.read_heads
        d_recurrent = self.controller.d_weight(self.known_TBK[:-1].flatten(0, 1))
        own = d_recurrent.shape[1] - self.reads_size
        d_recurrent = torch.cat([d_recurrent[:, own:], d_recurrent[:, :own]], 1)
        gates = self.controller.d_gates_TBG.flatten(0, 1)
        emitted, h = self.d_emitted_TBP.flatten(0, 1), self.known_TBK[1:, :, :size].flatten(0, 1)
        d_x = (gates @ self.weights.features).view_as(self.x_TBD) if wants_x else None
        d_features = gates.t() @ self.x_TBD.flatten(0, 1)
        d_cells: list[Tensor | None] = [*self._d_cells()]
        d_h = d_known[:, :size] if self.has_h else None
        d_state = [
            d_memory,
            d_weights[:, :reading],
            d_weights[:, reading:],
            d_known[:, size:].view(self.batch, reading, -1),
        ]
        d_parameters = [d_features, gates.sum(0), d_recurrent, emitted.t() @ h, emitted.sum(0)]
        return [d_x, *d_parameters, *d_state, d_h, *(d_cells or [None])]


def _softmax_backward(d_out: Tensor, out: Tensor) -> Tensor:
    """Gradient of what a softmax over the last axis was taken of."""
    return torch._softmax_backward_data(d_out, out, -1, out.dtype)
