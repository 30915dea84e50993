"""A window of an Elman, GRU or LSTM layer in one native call, as one node of torch's gradient graph.

The products with the inputs stay torch's: they are one product for all steps.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from recurra.models.native.library import SUFFIXES, address, function
from recurra.models.native.pool import lend

KINDS = {"tanh": 0, "relu": 1, "gru": 2, "lstm": 3}


class CellWeights(NamedTuple):
    """Parameters of the part of a layer that runs step by step, in the order in which the kernel takes them."""

    shift: Tensor
    """[G], added to the product with the last output."""
    gain: Tensor | None = None
    """[G]: layer normalisation of that product."""
    cell_gain: Tensor | None = None
    """[H], with `cell_shift`: layer normalisation of an LSTM's cell state on its way out."""
    cell_shift: Tensor | None = None
    peepholes: Tensor | None = None
    """[3, H]: of input, forget and output gate."""


class Layer(NamedTuple):
    """What one layer is."""

    kind: int
    zoneout: float
    """Share of the old value that stays where no mask says which units are kept."""
    recurrent: Tensor
    """[G, H]"""
    weights: CellWeights


class Rows(NamedTuple):
    """Which steps are real, and which units zoneout keeps; None = all, and none by chance."""

    lengths_B: Tensor | None = None
    """int64, on the CPU."""
    kept_h_TBH: Tensor | None = None
    kept_c_TBH: Tensor | None = None
    """bool"""


class Cell(ctypes.Structure):
    """Mirrors `Cell` of cells.h."""

    _fields_ = [
        ("kind", ctypes.c_int64),
        ("hidden", ctypes.c_int64),
        ("zoneout", ctypes.c_double),
        *((name, ctypes.c_void_p) for name in CellWeights._fields),
    ]


_POINTERS = ("projected", "weight", "kept_h", "kept_c", "lengths", "h", "c", "tape", "workspace")


class _Window(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int64) for name in ("batch", "steps", "keep")),
        ("cell", Cell),
        *((name, ctypes.c_void_p) for name in _POINTERS),
    ]


_Gradient = ctypes.c_void_p * (5 + len(CellWeights._fields))


def run(layer: Layer, projected_TBG: Tensor, state: tuple[Tensor, Tensor | None], rows: Rows) -> tuple[Tensor, ...]:
    """`y_TBH`, which repeats the last real output in padding, and the state after each row's last real step.

    Args:
        layer: Of which kind, with its parameters in float32 or float64, all on the CPU.
        projected_TBG: The inputs' share of the pre-activations.
        state: Output [B, H], and of an LSTM its cell state [B, H].
        rows: Lengths and masks.
    """
    arguments = (projected_TBG, layer.recurrent, *layer.weights, *state)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in arguments):
        return tuple(_Sequence.apply((layer.kind, layer.zoneout), rows, *arguments))  # type: ignore[no-untyped-call]
    h, c, _ = _forward((layer.kind, layer.zoneout), rows, [_plain(t) for t in arguments], keep=False)
    return (h[1:], h[-1]) if c is None else (h[1:], h[-1], c[-1])


class _Sequence(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, options: tuple[int, float], rows: Rows, *arguments: Tensor | None) -> tuple[Tensor, ...]:
        held = [_plain(t) for t in arguments]
        h, c, lease = _forward(options, rows, held, keep=True)
        ctx.save_for_backward(*held[1:7], h, c)
        ctx.facts = (options, rows, lease)
        return (h[1:], h[-1].clone()) if c is None else (h[1:], h[-1].clone(), c[-1].clone())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_y_TBH: Tensor, *d_end: Tensor) -> tuple[Tensor | None, ...]:
        recurrent, *weights, h, c = ctx.saved_tensors
        options, rows, lease = ctx.facts
        steps, batch, size = d_y_TBH.shape
        d_state = [t.clone(memory_format=torch.contiguous_format) for t in d_end]
        d_projected = d_y_TBH.new_empty(steps, batch, recurrent.shape[0])
        apart = options[0] == KINDS["gru"] or weights[1] is not None
        d_raw = torch.empty_like(d_projected) if apart else d_projected
        sums = [None if w is None else torch.zeros_like(w) for w in weights]
        window = _window(options, (steps, batch, size), [None, recurrent, *weights], rows)
        window.keep, window.h, window.c, window.tape = 1, address(h), address(c), address(lease.tensor)
        workspace = _workspace(window, h.dtype)
        d_y_TBH = d_y_TBH.contiguous()
        d_c = d_state[1] if len(d_state) > 1 else None
        gradient = _Gradient(*map(address, [d_y_TBH, d_state[0], d_c, d_projected, d_raw, *sums]))
        function("recurra_window_backward_" + SUFFIXES[h.dtype])(ctypes.byref(window), gradient)
        del workspace
        d_recurrent = d_raw.flatten(0, 1).t() @ h[:-1].flatten(0, 1)
        return None, None, d_projected, d_recurrent, *sums, d_state[0], d_c


def _forward(
    options: tuple[int, float], rows: Rows, held: Sequence[Tensor | None], *, keep: bool
) -> tuple[Tensor, Tensor | None, Any]:
    projected_TBG, start_h, start_c = held[0], held[7], held[8]
    assert projected_TBG is not None and start_h is not None
    steps, batch = projected_TBG.shape[:2]
    size, dtype = start_h.shape[1], projected_TBG.dtype
    h = projected_TBG.new_empty(steps + 1, batch, size)
    h[0] = start_h
    c = None
    if start_c is not None:
        c = torch.empty_like(h)
        c[0] = start_c
    window = _window(options, (steps, batch, size), held[:7], rows)
    window.keep, window.projected, window.h, window.c = keep, address(projected_TBG), address(h), address(c)
    tape_size = function("recurra_window_tape_size_" + SUFFIXES[dtype], returns_index=True)(ctypes.byref(window))
    lease = lend((steps if keep else 1) * batch * tape_size, dtype)
    window.tape = address(lease.tensor)
    workspace = _workspace(window, dtype)
    function("recurra_window_forward_" + SUFFIXES[dtype])(ctypes.byref(window))
    del workspace
    return h, c, lease


def _window(
    options: tuple[int, float], shape: tuple[int, int, int], held: Sequence[Tensor | None], rows: Rows
) -> _Window:
    """`shape` is T, B, H; `held` has the recurrent matrix in its second place and the cell's weights after it."""
    steps, batch, size = shape
    cell = Cell(options[0], size, options[1], *map(address, held[2:]))
    window = _Window(batch, steps, 0, cell, None, address(held[1]))
    window.kept_h, window.kept_c = address(rows.kept_h_TBH), address(rows.kept_c_TBH)
    window.lengths = address(rows.lengths_B)
    return window


def _workspace(window: _Window, dtype: torch.dtype) -> Any:
    numbers = function("recurra_window_workspace_size_" + SUFFIXES[dtype], returns_index=True)(ctypes.byref(window))
    lease = lend(numbers, dtype)
    window.workspace = address(lease.tensor)
    return lease


def _plain(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.detach().contiguous()
