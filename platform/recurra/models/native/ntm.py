"""A whole sequence of a Neural Turing Machine in one native call, as one node of torch's gradient graph."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from recurra.models.config import NtmConfig
from recurra.models.native.library import kernels
from recurra.models.native.pool import Lease, lend

CONTROLLERS = {"lstm": 0, "gru": 1, "feed_forward": 2}
SUFFIXES = {torch.float32: "f32", torch.float64: "f64"}
STATE = ("memory", "weights", "reads", "output", "cell")
"""Tensors of the state, [B, ...]: [N, M], [J, N] read heads first, [R, M], [H], [H]; absent ones are None."""

States = tuple[Tensor | None, ...]


class _Shape(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_int64)
        for name in [
            "batch",
            "steps",
            "hidden",
            "rows",
            "width",
            "read_heads",
            "write_heads",
            "reach",
            "controller",
            "keep",
        ]
    ]


class _Forward(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_void_p)
        for name in [
            *("projected", "weight_rh", "weight_heads", "bias_heads"),
            *STATE,
            *(f"start_{name}" for name in STATE),
            *("lengths", "resets", "workspace", "y"),
            *(f"end_{name}" for name in STATE),
        ]
    ]


class _Backward(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_void_p)
        for name in [
            *("weight_rh", "weight_heads", "lengths", "resets", "workspace", "d_y"),
            *(f"d_{name}" for name in STATE),
            *(f"d_start_{name}" for name in STATE),
            *("d_gates", "d_own", "d_emitted"),
        ]
    ]


@dataclass(frozen=True)
class Weights:
    """Parameters of the step that the kernel runs; the features' share is projected outside."""

    recurrent: Tensor
    """[G, R * M + H]"""
    heads: Tensor
    """[P, H]"""
    bias: Tensor
    """[P]"""


@dataclass(frozen=True)
class Rows:
    """Which steps are real and where sequences start; None = all, and nowhere."""

    lengths_B: Tensor | None
    """int64 on the CPU"""
    reset_BT: Tensor | None
    """bool on the CPU"""


def available(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether `run` can be called for such tensors; builds the kernels when it is asked first."""
    return device.type == "cpu" and dtype in SUFFIXES and kernels() is not None


def run(
    ntm: NtmConfig, projected_TBG: Tensor, weights: Weights, state: States, start: States, rows: Rows
) -> tuple[Tensor, States]:
    """`y_TBH`, zero in padding, and the state after each row's last real step, in the order of STATE."""
    arguments = (projected_TBG, weights.recurrent, weights.heads, weights.bias, *state, *start)
    wants_grad = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in arguments)
    if wants_grad:
        y_TBH, *end = _Sequence.apply(ntm, rows, *arguments)  # type: ignore[no-untyped-call]
        return y_TBH, tuple(end)
    return _forward(ntm, rows, arguments, keep=False)[:2]


class _Sequence(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, ntm: NtmConfig, rows: Rows, *arguments: Tensor | None) -> tuple[Tensor | None, ...]:
        y_TBH, end, lease = _forward(ntm, rows, arguments, keep=True)
        _, recurrent, heads, *_ = arguments
        ctx.save_for_backward(recurrent, heads, y_TBH)
        ctx.facts = (ntm, rows, lease, [t is not None for t in end])
        return y_TBH, *end

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_y_TBH: Tensor, *d_end: Tensor | None) -> tuple[Tensor | None, ...]:
        return None, None, *_backward(ctx, d_y_TBH, d_end)


def _forward(
    ntm: NtmConfig, rows: Rows, arguments: tuple[Tensor | None, ...], *, keep: bool
) -> tuple[Tensor, States, Lease]:
    held = [None if t is None else t.detach().contiguous() for t in arguments]
    projected, _, heads = held[0], held[1], held[2]
    assert projected is not None and heads is not None
    steps, batch = projected.shape[:2]
    shape = _shape(ntm, batch, steps, heads.shape[1], keep)
    lease = lend(_workspace(shape)[0], projected.dtype)
    y = projected.new_empty(steps, batch, heads.shape[1] + ntm.read_heads * ntm.memory_width)
    end = [None if t is None else torch.empty_like(t) for t in held[4:9]]
    resets = rows.reset_BT is not None
    starts = held[9:] if resets else [None] * len(STATE)
    marks = _marks(rows)
    call = _Forward(*_pointers([*held[:9], *starts, *marks, lease.tensor, y, *end]))
    library = kernels()
    assert library is not None
    function = library[f"recurra_ntm_forward_{SUFFIXES[projected.dtype]}"]
    function(ctypes.byref(shape), ctypes.byref(call))
    return y, tuple(end), lease


def _backward(ctx: FunctionCtx, d_y_TBH: Tensor, d_end: tuple[Tensor | None, ...]) -> list[Tensor | None]:
    recurrent, heads, y_TBH = ctx.saved_tensors  # type: ignore[attr-defined]
    ntm, rows, lease, present = ctx.facts  # type: ignore[attr-defined]
    steps, batch = y_TBH.shape[:2]
    hidden, reads = heads.shape[1], ntm.read_heads * ntm.memory_width
    shape = _shape(ntm, batch, steps, hidden, True)
    carried: list[Tensor | None] = [
        None if not there or t is None else (t.transpose(1, 2) if name == "memory" else t).contiguous().clone()
        for name, t, there in zip(STATE, d_end, present, strict=True)
    ]
    if carried[3] is None:
        carried[3] = y_TBH.new_zeros(
            batch, hidden
        )  # a feed-forward controller keeps no output, but its gradient passes here
    starts = [None if t is None or rows.reset_BT is None else torch.zeros_like(t) for t in carried]
    d_gates = y_TBH.new_empty(steps, batch, recurrent.shape[0])
    d_own = torch.empty_like(d_gates) if ntm.controller == "gru" else d_gates
    d_emitted = y_TBH.new_empty(steps, batch, heads.shape[0])
    held = [recurrent.contiguous(), heads.contiguous(), *_marks(rows), lease.tensor, d_y_TBH.contiguous()]
    call = _Backward(*_pointers([*held, *carried, *starts, d_gates, d_own, d_emitted]))
    library = kernels()
    assert library is not None
    function = library[f"recurra_ntm_backward_{SUFFIXES[y_TBH.dtype]}"]
    function(ctypes.byref(shape), ctypes.byref(call))

    _, (output_at, reads_at) = _workspace(shape)
    count = steps * batch
    last_reads = lease.tensor[reads_at : reads_at + count * reads].view(count, reads)
    d_recurrent = d_gates.view(count, -1).t() @ last_reads
    if ntm.controller != "feed_forward":
        last_output = lease.tensor[output_at : output_at + count * hidden].view(count, hidden)
        d_recurrent = torch.cat([d_recurrent, d_own.view(count, -1).t() @ last_output], 1)
    flat = d_emitted.view(count, -1)
    d_heads, d_bias = flat.t() @ y_TBH.view(count, -1)[:, :hidden], flat.sum(0)
    return [d_gates, d_recurrent, d_heads, d_bias, *_given(carried, present), *_given(starts, present)]


def _given(gradients: list[Tensor | None], present: list[bool]) -> list[Tensor | None]:
    """Gradients of the tensors that there are, the memory's as [N, M]."""
    kept = [t if there else None for t, there in zip(gradients, present, strict=True)]
    return [None if t is None else t.transpose(1, 2) if n == 0 else t for n, t in enumerate(kept)]


def _shape(ntm: NtmConfig, batch: int, steps: int, hidden: int, keep: bool) -> _Shape:
    sizes = (ntm.memory_rows, ntm.memory_width, ntm.read_heads, ntm.write_heads, ntm.shift_range)
    return _Shape(batch, steps, hidden, *sizes, CONTROLLERS[ntm.controller], keep)


def _workspace(shape: _Shape) -> tuple[int, tuple[int, int]]:
    library = kernels()
    assert library is not None
    offsets = (ctypes.c_int64 * 2)()
    library.recurra_ntm_workspace.restype = ctypes.c_int64
    return library.recurra_ntm_workspace(ctypes.byref(shape), offsets), (offsets[0], offsets[1])


def _marks(rows: Rows) -> list[Tensor | None]:
    lengths = None if rows.lengths_B is None else rows.lengths_B.contiguous()
    return [lengths, None if rows.reset_BT is None else rows.reset_BT.contiguous()]


def _pointers(tensors: list[Tensor | None]) -> list[int | None]:
    return [None if t is None else t.data_ptr() for t in tensors]
