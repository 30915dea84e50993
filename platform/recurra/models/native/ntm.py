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
from recurra.models.native.library import kernels
from recurra.models.native.pool import Lease, lend

CONTROLLERS = {"lstm": 0, "gru": 1, "feed_forward": 2}
SUFFIXES = {torch.float32: "f32", torch.float64: "f64"}

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


class _Shape(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int64) for name in ("batch", "steps", *Sizes._fields, "keep")]


def available(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether `run` and `step` can be called for such tensors; builds the kernels when it is asked first."""
    return device.type == "cpu" and dtype in SUFFIXES and kernels() is not None


def run(sizes: Sizes, x_TBD: Tensor, weights: Weights, states: tuple[State, State], rows: Rows) -> tuple[Tensor, State]:
    """`y_TBH`, zero in padding, and the state after each row's last real step.

    Args:
        sizes: Of the machine.
        x_TBD: Features, time first.
        weights: Parameters.
        states: The state before the first step, and the one after a reset (read only if there is one).
        rows: Lengths and resets.
    """
    arguments = (x_TBD, *weights, *states[0], *states[1])
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in arguments):
        y_TBH, *end = _Sequence.apply(sizes, rows, *arguments)  # type: ignore[no-untyped-call]
        return y_TBH, tuple(end)
    y_TBH, end, _ = _forward(sizes, rows, arguments, keep=False)
    return y_TBH, end


def step(sizes: Sizes, x_BD: Tensor, weights: Weights, state: State) -> tuple[Tensor, State]:
    """One step without gradients; written for latency: what a step costs beside the kernel is calls of Python."""
    batch, dtype = x_BD.shape[0], x_BD.dtype
    shape = _shape(sizes, batch, 1, False)
    held = [x_BD, *weights, *state]
    held = [t if t is None or t.is_contiguous() else t.contiguous() for t in held]
    y_BH = x_BD.new_empty(batch, sizes.hidden + sizes.read_heads * sizes.width)
    end = [None if t is None else torch.empty_like(t) for t in state]
    workspace = _workspace_of_thread(sizes, batch, dtype)
    _call("forward", dtype, shape, [*held, *[None] * (STATE_SIZE + 2), workspace, y_BH, *end])
    return y_BH, tuple(end)


class _Sequence(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, sizes: Sizes, rows: Rows, *arguments: Tensor | None) -> tuple[Tensor | None, ...]:
        y_TBH, end, lease = _forward(sizes, rows, arguments, keep=True)
        ctx.save_for_backward(*arguments[:5], y_TBH)
        ctx.facts = (sizes, rows, lease)
        return y_TBH, *end

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_y_TBH: Tensor, *d_end: Tensor | None) -> tuple[Tensor | None, ...]:
        return None, None, *_backward(ctx, d_y_TBH, d_end)


def _forward(
    sizes: Sizes, rows: Rows, arguments: Sequence[Tensor | None], *, keep: bool
) -> tuple[Tensor, State, Lease]:
    held = [None if t is None else t.detach().contiguous() for t in arguments]
    x_TBD = held[0]
    assert x_TBD is not None
    steps, batch = x_TBD.shape[:2]
    shape = _shape(sizes, batch, steps, keep)
    lease = lend(_workspace(shape)[0], x_TBD.dtype)
    y_TBH = x_TBD.new_empty(steps, batch, sizes.hidden + sizes.read_heads * sizes.width)
    end = [None if t is None else torch.empty_like(t) for t in held[6:12]]
    starts = [None] * STATE_SIZE if rows.reset_BT is None else held[12:]
    _call("forward", x_TBD.dtype, shape, [*held[:12], *starts, *rows, lease.tensor, y_TBH, *end])
    return y_TBH, tuple(end), lease


def _backward(ctx: Any, d_y_TBH: Tensor, d_end: State) -> list[Tensor | None]:
    x_TBD, features, _, recurrent, heads, y_TBH = ctx.saved_tensors
    sizes, rows, lease = ctx.facts
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
    _call("backward", y_TBH.dtype, shape, [*held, *moving, *starts, d_gates, d_own, d_emitted])

    gates, own, emitted = d_gates.flatten(0, 1), d_own.flatten(0, 1), d_emitted.flatten(0, 1)
    outputs, reads = _kept(shape, lease, gates.shape[0], sizes)
    d_recurrent = gates.t() @ reads if outputs is None else torch.cat([gates.t() @ reads, own.t() @ outputs], 1)
    d_x_TBD = (gates @ features).view_as(x_TBD) if ctx.needs_input_grad[2] else None
    d_features = gates.t() @ x_TBD.reshape(-1, sizes.features)
    d_heads = emitted.t() @ y_TBH.flatten(0, 1)[:, : sizes.hidden]
    return [d_x_TBD, d_features, gates.sum(0), d_recurrent, d_heads, emitted.sum(0), *carried, *starts]


def _kept(shape: _Shape, lease: Lease, count: int, sizes: Sizes) -> tuple[Tensor | None, Tensor]:
    """What each step was given: the last outputs [T * B, H] (None if the controller keeps none) and reads [T * B, R * M]."""
    _, output_at, reads_at = _workspace(shape)
    reads_size = sizes.read_heads * sizes.width
    reads = lease.tensor[reads_at : reads_at + count * reads_size].view(count, reads_size)
    if sizes.controller == CONTROLLERS["feed_forward"]:
        return None, reads
    return lease.tensor[output_at : output_at + count * sizes.hidden].view(count, sizes.hidden), reads


@functools.lru_cache(maxsize=1024)
def _shape(sizes: Sizes, batch: int, steps: int, keep: bool) -> _Shape:
    return _Shape(batch, steps, *sizes, keep)


def _workspace(shape: _Shape) -> tuple[int, int, int]:
    """Numbers in the workspace, and where outputs and reads stand in it."""
    offsets = (ctypes.c_int64 * 2)()
    function = _function("recurra_ntm_workspace")
    return function(ctypes.byref(shape), offsets), offsets[0], offsets[1]


class _Workspaces(threading.local):
    """One workspace of a step for each thread and shape: two threads may step one model at once."""

    def __init__(self) -> None:
        self.kept: dict[tuple[Sizes, int, torch.dtype], Tensor] = {}


_workspaces = _Workspaces()


def _workspace_of_thread(sizes: Sizes, batch: int, dtype: torch.dtype) -> Tensor:
    key = (sizes, batch, dtype)
    workspace = _workspaces.kept.get(key)
    if workspace is None:
        if len(_workspaces.kept) >= 64:
            _workspaces.kept.clear()
        workspace = torch.empty(_workspace(_shape(sizes, batch, 1, False))[0], dtype=dtype)
        _workspaces.kept[key] = workspace
    return workspace


def _call(name: str, dtype: torch.dtype, shape: _Shape, tensors: Sequence[Tensor | None]) -> None:
    """Tensors go as an array of pointers, which is what the kernel's structures are."""
    pointers = (ctypes.c_void_p * len(tensors))(*[None if t is None else t.data_ptr() for t in tensors])
    _function(f"recurra_ntm_{name}_{SUFFIXES[dtype]}")(ctypes.byref(shape), pointers)


@functools.cache
def _function(name: str) -> Any:
    library = kernels()
    assert library is not None
    function = library[name]
    function.restype = ctypes.c_int64 if name.endswith("workspace") else None
    return function
