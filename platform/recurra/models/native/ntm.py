"""A whole sequence of a Neural Turing Machine in one native call, as one node of torch's gradient graph."""

from __future__ import annotations

import ctypes
import functools
import threading
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from recurra.models.config import NtmConfig
from recurra.models.native.library import SUFFIXES, address, function, packed
from recurra.models.native.pool import Lease, lend

CONTROLLERS = {"lstm": 0, "gru": 1, "feed_forward": 2}

State = tuple[Tensor | None, ...]
"""Memory [B, M, N], weightings [B, R, N] and [B, W, N], reads [B, R, M], controller's output and cell [B, H] or None."""
STATE_SIZE = 6


class Sizes(NamedTuple):
    """Sizes of a machine, in the order in which the kernel takes them."""

    features: int
    hidden: int
    rows: int
    width: int
    read_heads: int
    write_heads: int
    reach: int
    controller: int

    @classmethod
    def of(cls, ntm: NtmConfig, features: int, hidden: int) -> Sizes:
        memory = (ntm.memory_rows, ntm.memory_width, ntm.read_heads, ntm.write_heads, ntm.shift_range)
        return cls(features, hidden, *memory, CONTROLLERS[ntm.controller])


class Weights(NamedTuple):
    """Parameters, in the order in which the kernel takes them."""

    features: Tensor
    """[G, D]"""
    bias: Tensor
    """[G]"""
    recurrent: Tensor
    """[G, R * M + H]"""
    heads: Tensor
    """[P, H]"""
    heads_bias: Tensor
    """[P]"""


class Rows(NamedTuple):
    """Which steps are real and where sequences start, contiguous on the CPU; None = all, and nowhere."""

    lengths_B: Tensor | None
    """int64"""
    reset_BT: Tensor | None
    """bool"""


NOTHING = (None,) * (STATE_SIZE + 2)
"""No state to start from anew, no lengths, no resets."""
STEP_ROWS = 64
"""Sequences that a single native step takes at most."""
_Pointers = ctypes.c_void_p * (6 + STATE_SIZE + len(NOTHING) + 2 + STATE_SIZE + 3)


class _Shape(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int64) for name in ("batch", "steps", *Sizes._fields, "keep")]


def run(
    sizes: Sizes,
    x_TBD: Tensor,
    weights: Weights,
    states: tuple[State, State],
    rows: Rows,
    limit: float | None = None,
) -> tuple[Tensor, State]:
    """`y_TBH`, zero in padding, and the state after each row's last real step.

    Args:
        sizes: Of the machine.
        x_TBD: Features, time first.
        weights: Parameters.
        states: The state before the first step, and the one after a reset (read only if there is one).
        rows: Lengths and resets.
        limit: Largest absolute value of one number of the state's gradient between two steps; None = any.
    """
    arguments = (x_TBD, *weights, *states[0], *states[1])
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in arguments):
        y_TBH, *end = _Sequence.apply(sizes, rows, limit, *arguments)  # type: ignore[no-untyped-call]
        return y_TBH, tuple(end)
    y_TBH, end, _ = _forward(sizes, rows, arguments, keep=False)
    return y_TBH, end


def step(sizes: Sizes, x_BD: Tensor, weights: Weights, state: State) -> tuple[Tensor, State]:
    """One step without gradients. Written for latency: Python's share of a step would else be twice the kernel's."""
    batch, dtype = x_BD.shape[0], x_BD.dtype
    held = [x_BD, *weights, *state]
    if not all(map(_ready, held)):
        held = [t if t is None else t.contiguous() for t in held]
    y_BH = x_BD.new_empty(batch, sizes.hidden + sizes.read_heads * sizes.width)
    end = [None if t is None else torch.empty_like(t) for t in held[6:]]
    shape, workspace = _prepared(sizes, batch, dtype)
    pointers = _Pointers(*map(address, held), *NOTHING, workspace, address(y_BH), *map(address, end))
    function("recurra_ntm_forward_" + SUFFIXES[dtype])(shape, pointers)
    return y_BH, tuple(end)


class StepInPlace:
    """Single steps in float32 on states that stay where they are, and the output layer behind them, in one call.

    Args:
        sizes: Of the machine.
        weights: Copied.
        head: Matrix [K, H + R * M] and bias [K] of the output layer; copied.
        state: Tensors [S, ...] whose rows are contiguous; every call reads and writes the rows that it names.
    """

    def __init__(self, sizes: Sizes, weights: Weights, head: tuple[Tensor, Tensor], state: State) -> None:
        memory = state[0]
        assert memory is not None and all(t is None or (t[0].is_contiguous() and len(t) == len(memory)) for t in state)
        self._slots, self._sizes, self._outputs = memory.shape[0], sizes, head[0].shape[0]
        self._shapes = {n: ctypes.addressof(_shape(sizes, n, 1, False)) for n in range(1, STEP_ROWS + 1)}
        largest = _shape(sizes, STEP_ROWS, 1, False)
        turned = torch.empty(function("recurra_ntm_turned_size", returns_index=True)(ctypes.byref(largest)))
        own = Weights(*(t.detach().clone(memory_format=torch.contiguous_format) for t in weights))
        matrices = (own.features, own.recurrent, own.heads, turned)
        function("recurra_ntm_turn_f32")(ctypes.byref(largest), *(ctypes.c_void_p(t.data_ptr()) for t in matrices))
        strides = (ctypes.c_int64 * STATE_SIZE)(*(0 if t is None else t.stride(0) for t in state))
        self._rows = (ctypes.c_int64 * STEP_ROWS)()
        workspace, y_BH = torch.empty(_workspace(largest)), torch.empty(STEP_ROWS, head[0].shape[1])
        places = list(map(address, state))
        fixed = (address(turned), ctypes.addressof(self._rows), ctypes.addressof(strides))
        self._pointers = _Pointers(
            None, *map(address, own), *places, *NOTHING, address(workspace), address(y_BH), *places, *fixed
        )
        matrix, bias = packed(head[0]), head[1].detach().clone()
        room = torch.empty(STEP_ROWS * (len(matrix) // head[0].shape[1]))
        self._head = (ctypes.c_void_p * 4)(self._outputs, address(matrix), address(bias), address(room))
        self._held = (state, own, turned, strides, workspace, y_BH, matrix, bias, room)
        self._places = (ctypes.addressof(self._pointers), ctypes.addressof(self._head))
        self._run = function("recurra_ntm_step_f32")
        self._run.argtypes = (ctypes.c_void_p,) * 5

    def __call__(self, x_BD: Tensor, rows: Sequence[int]) -> Tensor:
        """The outputs [B, K] for the sequences in some rows; a row must not stand there twice.

        Raises:
            IndexError: A row does not exist, or the features have another shape; then nothing was done.
        """
        count, features = len(rows), self._sizes.features
        if x_BD.dtype != torch.float32 or not x_BD.is_contiguous():
            x_BD = x_BD.float().contiguous()
        if x_BD.shape != (count, features) or min(rows) < 0 or max(rows) >= self._slots:
            raise IndexError(
                f"A step of {count} rows of {self._slots} cannot take features of shape {list(x_BD.shape)}."
            )
        out_BK = torch.empty(count, self._outputs)
        x, out = x_BD.data_ptr(), out_BK.data_ptr()
        for begin in range(0, count, STEP_ROWS):
            part = rows[begin : begin + STEP_ROWS]
            self._rows[: len(part)] = list(part)
            self._run(self._shapes[len(part)], *self._places, x + 4 * begin * features, out + 4 * begin * self._outputs)
        return out_BK


class _Sequence(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, sizes: Sizes, rows: Rows, limit: float | None, *arguments: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        y_TBH, end, lease = _forward(sizes, rows, arguments, keep=True)
        ctx.save_for_backward(*arguments[:5], y_TBH)
        ctx.facts = (sizes, rows, limit, lease)
        return y_TBH, *end

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_y_TBH: Tensor, *d_end: Tensor | None) -> tuple[Tensor | None, ...]:
        return None, None, None, *_backward(ctx, d_y_TBH, d_end)


def _forward(
    sizes: Sizes, rows: Rows, arguments: Sequence[Tensor | None], *, keep: bool
) -> tuple[Tensor, State, Lease]:
    held = [None if t is None else t.detach().contiguous() for t in arguments]
    x_TBD = held[0]
    assert x_TBD is not None
    steps, batch = x_TBD.shape[:2]
    shape = _shape(sizes, batch, steps, keep)
    lease = lend(_workspace(shape), x_TBD.dtype)
    y_TBH = x_TBD.new_empty(steps, batch, sizes.hidden + sizes.read_heads * sizes.width)
    end = [None if t is None else torch.empty_like(t) for t in held[6:12]]
    starts = [None] * STATE_SIZE if rows.reset_BT is None else held[12:]
    _call("forward", x_TBD.dtype, shape, [*held[:12], *starts, *rows, lease.tensor, y_TBH, *end])
    return y_TBH, tuple(end), lease


def _backward(ctx: Any, d_y_TBH: Tensor, d_end: State) -> list[Tensor | None]:
    x_TBD, features, _, recurrent, heads, y_TBH = ctx.saved_tensors
    sizes, rows, limit, lease = ctx.facts
    steps, batch = y_TBH.shape[:2]
    carried = [None if t is None else t.clone(memory_format=torch.contiguous_format) for t in d_end]
    # A feed-forward controller keeps no output in the state, but the gradient of its output passes through here.
    passing = [y_TBH.new_zeros(batch, sizes.hidden)] if carried[4] is None else []
    starts = [None if t is None or rows.reset_BT is None else torch.zeros_like(t) for t in carried]
    d_gates = y_TBH.new_empty(steps, batch, recurrent.shape[0])
    d_own = torch.empty_like(d_gates) if sizes.controller == CONTROLLERS["gru"] else d_gates
    d_emitted = y_TBH.new_empty(steps, batch, heads.shape[0])
    held = [recurrent.contiguous(), heads.contiguous(), *rows, lease.tensor, d_y_TBH.contiguous()]
    moving = [*carried[:4], *(passing or [carried[4]]), carried[5]]
    shape = _shape(sizes, batch, steps, True)
    bound = None if limit is None else y_TBH.new_tensor(limit)
    _call("backward", y_TBH.dtype, shape, [*held, *moving, *starts, d_gates, d_own, d_emitted, bound])

    gates, own, emitted = d_gates.flatten(0, 1), d_own.flatten(0, 1), d_emitted.flatten(0, 1)
    reads_size = sizes.read_heads * sizes.width
    known = lease.tensor[: len(gates) * (reads_size + sizes.hidden)].view(len(gates), -1)
    d_recurrent = gates.t() @ known[:, : recurrent.shape[1]]
    if sizes.controller == CONTROLLERS["gru"]:
        d_recurrent[:, reads_size:] = own.t() @ known[:, reads_size:]
    d_x_TBD = (gates @ features).view_as(x_TBD) if ctx.needs_input_grad[3] else None
    d_features = gates.t() @ x_TBD.reshape(-1, sizes.features)
    d_heads = emitted.t() @ y_TBH.flatten(0, 1)[:, : sizes.hidden]
    return [d_x_TBD, d_features, gates.sum(0), d_recurrent, d_heads, emitted.sum(0), *carried, *starts]


@functools.lru_cache(maxsize=1024)
def _shape(sizes: Sizes, batch: int, steps: int, keep: bool) -> _Shape:
    return _Shape(batch, steps, *sizes, keep)


def _workspace(shape: _Shape) -> int:
    """Numbers in the workspace."""
    numbers: int = function("recurra_ntm_workspace_size", returns_index=True)(ctypes.byref(shape))
    return numbers


class _Prepared(threading.local):
    """Shape and workspace of a step, for each thread: two threads may step one model at once."""

    def __init__(self) -> None:
        self.kept: dict[tuple[Sizes, int, torch.dtype], tuple[Any, int, Tensor]] = {}


_prepared_steps = _Prepared()


def _prepared(sizes: Sizes, batch: int, dtype: torch.dtype) -> tuple[Any, int]:
    """Pointers to the shape of a step and to a workspace for it."""
    kept = _prepared_steps.kept
    key = (sizes, batch, dtype)
    if key not in kept:
        if len(kept) >= 64:
            kept.clear()
        shape = _shape(sizes, batch, 1, False)
        workspace = torch.empty(_workspace(shape), dtype=dtype)
        kept[key] = (ctypes.byref(shape), workspace.data_ptr(), workspace)
    return kept[key][:2]


def _call(name: str, dtype: torch.dtype, shape: _Shape, tensors: Sequence[Tensor | None]) -> None:
    """Tensors go as an array of pointers, which is what the kernel's structures are."""
    pointers = _Pointers(*map(address, tensors))
    function(f"recurra_ntm_{name}_{SUFFIXES[dtype]}")(ctypes.byref(shape), pointers)


def _ready(tensor: Tensor | None) -> bool:
    return tensor is None or tensor.is_contiguous()
