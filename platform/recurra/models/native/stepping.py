"""One step of a stack of layers in one native call, on states that stay where they are.

In float32, or with matrices of 8-bit integers (one scale for each row of a matrix, and one for each input as it comes) or of
bfloat16 (inputs are rounded as they come, sums are taken in float32).
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from recurra.models.native.library import address, aligned, function, kernels, packed
from recurra.models.native.recurrent import Cell, Layer

Precision = Literal["float32", "int8", "bf16"]
FORMATS: dict[Precision, int] = {"float32": 0, "int8": 1, "bf16": 2}
"""As `Format` in matrix.h."""
EXTENSIONS = {
    "int8": ("", "AVX512-VNNI", "AMX-INT8"),
    "bf16": ("", "AVX512-BF16", "AMX-BF16"),
}
"""What products can use beyond the library's own instructions, as `Extension` in extensions.h."""
TABLE_BYTES = 64 << 20
"""Most memory for a table of what the first layer makes of each token; with it, its product with the input is not taken."""


class StepLayer(NamedTuple):
    """A layer and where its sequences have their state."""

    layer: Layer
    input: Tensor
    """[G, D]"""
    shift: Tensor
    """[G], added to the product with the input."""
    gain: Tensor | None
    """[G]: layer normalisation of that product."""
    residual: bool
    """Whether the input is added to the output; only where both are equally wide."""
    h_SH: Tensor
    """Rows contiguous, at any distance from one another."""
    c_SH: Tensor | None


class Ends(NamedTuple):
    """What stands before and behind the layers."""

    embedding: Tensor | None = None
    """[V, D]; None where features come."""
    head: Tensor | None = None
    """[K, H]; None where the last layer's outputs are asked for."""
    head_bias: Tensor | None = None
    """[K]"""


def extension(precision: Precision) -> str:
    """The instructions that steps of a precision are taken with here, by name; empty where there is none for it."""
    known = EXTENSIONS.get(precision)
    if known is None or kernels() is None:
        return ""
    return known[function("recurra_extension", returns_index=True)(ctypes.c_int64(FORMATS[precision]))]


class _Matrix(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int64) for name in ("n", "depth", "format")),
        *((name, ctypes.c_void_p) for name in ("values", "scales", "offsets")),
    ]


class _Layer(ctypes.Structure):
    _fields_ = [
        ("cell", Cell),
        *((name, ctypes.c_int64) for name in ("features", "residual")),
        *((name, _Matrix) for name in ("of_input", "of_output")),
        *((name, ctypes.c_void_p) for name in ("gain_x", "shift_x", "h", "c")),
        *((name, ctypes.c_int64) for name in ("stride_h", "stride_c")),
    ]


class _Step(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int64) for name in ("slots", "count")),
        ("layers", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("features", "tokens")),
        *((name, ctypes.c_void_p) for name in ("embedding", "table")),
        ("head", _Matrix),
        *((name, ctypes.c_void_p) for name in ("head_bias", "workspace")),
        *((name, ctypes.c_int64) for name in ("turns", "batch")),
        *((name, ctypes.c_void_p) for name in ("inputs", "rows", "out")),
    ]


class StackInPlace:
    """Single steps of layers. Not for several threads at once.

    Args:
        layers: From the input on; parameters are copied.
        ends: Embedding (not copied) and output layer.
        precision: Of the matrices. `int8` leaves the output layer as it is; `bf16` wants an `extension`.
    """

    def __init__(self, layers: Sequence[StepLayer], ends: Ends, *, precision: Precision = "float32") -> None:
        self._held: list[Any] = [layers, ends]
        self.slots = layers[0].h_SH.shape[0]
        """Rows of the states."""
        own = (_Layer * len(layers))(*(self._layer(layer, precision) for layer in layers))
        features = layers[0].input.shape[1]
        self.dtype, self.width = (torch.float32, features) if ends.embedding is None else (torch.int64, 1)
        """Of what one step takes of a sequence."""
        self.outputs = layers[-1].h_SH.shape[1] if ends.head is None else ends.head.shape[0]
        self._step = _Step(self.slots, len(layers), ctypes.addressof(own), features)
        if ends.embedding is not None:
            self._step.tokens, self._step.embedding = ends.embedding.shape[0], self._keep(ends.embedding)
        if ends.head is not None:
            own_precision: Precision = "float32" if precision == "int8" else precision
            bias = ends.head.new_zeros(self.outputs) if ends.head_bias is None else ends.head_bias.detach().clone()
            self._step.head, self._step.head_bias = self._pack(ends.head, own_precision), self._keep(bias)
        numbers = function("recurra_step_workspace_size", returns_index=True)(ctypes.byref(self._step))
        self._step.workspace = self._keep(torch.empty(numbers))
        if ends.embedding is not None:
            self._fill_table()
        self.place = ctypes.addressof(self._step)
        """Of the structure that the kernels read; valid as long as this object."""
        self._rows = (ctypes.c_int64 * self.slots)()
        self._step.rows = ctypes.addressof(self._rows)
        self._held.append(own)
        self._run = function("recurra_step", returns_index=True)
        self._run.argtypes = (ctypes.c_void_p,)  # one: each costs a tenth of a microsecond

    def __call__(self, inputs_B: Tensor, rows: Sequence[int]) -> Tensor:
        """Outputs [B, K] for the sequences in some rows; a row must not stand there twice.

        Args:
            inputs_B: Token ids [B], or features [B, D].
            rows: Of the states.

        Raises:
            IndexError: A row or a token does not exist, or the inputs have another shape; then nothing was done.
        """
        count, dtype = len(rows), self.dtype
        if inputs_B.dtype is not dtype or not inputs_B.is_contiguous():
            inputs_B = inputs_B.to(dtype).contiguous()
        out_BK = torch.empty(count, self.outputs)
        if inputs_B.numel() == count * self.width and count <= self.slots:
            self._rows[:count] = list(rows)
            step = self._step
            step.batch, step.inputs, step.out = count, inputs_B.data_ptr(), out_BK.data_ptr()
            if not self._run(self.place):
                return out_BK
        raise IndexError(
            f"A step of {count} rows of {self.slots} cannot take inputs of shape {list(inputs_B.shape)} and type {dtype}: "
            "the shape is another, or a row or a token does not exist."
        )

    def _fill_table(self) -> None:
        """Take the first layer's product with every token's vector now, unless the table would be too large."""
        numbers = function("recurra_table_size", returns_index=True)(ctypes.byref(self._step))
        if 4 * numbers <= TABLE_BYTES:
            table = aligned(4 * numbers)
            function("recurra_fill_table")(ctypes.byref(self._step), ctypes.c_void_p(table.data_ptr()))
            self._step.table = self._keep(table)

    def _layer(self, step: StepLayer, precision: Precision) -> _Layer:
        layer, (rows, size) = step.layer, step.h_SH.shape
        assert step.h_SH[0].is_contiguous() and rows == self.slots
        cell = Cell(layer.kind, size, layer.zoneout, *(self._copy(t) for t in layer.weights))
        matrices = self._pack(step.input, precision), self._pack(layer.recurrent, precision)
        parts = self._copy(step.gain), self._copy(step.shift), address(step.h_SH), address(step.c_SH)
        strides = step.h_SH.stride(0), 0 if step.c_SH is None else step.c_SH.stride(0)
        return _Layer(cell, step.input.shape[1], step.residual, *matrices, *parts, *strides)

    def _pack(self, matrix: Tensor, precision: Precision) -> _Matrix:
        n, depth = matrix.shape
        size = (ctypes.c_int64(n), ctypes.c_int64(depth))
        own = _Matrix(n, depth, FORMATS[precision])
        if precision == "float32":
            own.values = self._keep(packed(matrix))
            return own
        bytes_needed = function("recurra_narrow_size", returns_index=True)(*size, ctypes.c_int64(own.format))
        matrix, values = matrix.detach().float().contiguous(), aligned(bytes_needed)
        parts = [matrix, values]
        if precision == "int8":
            columns = function("recurra_narrow_columns", returns_index=True)(size[0])
            parts += [torch.empty(columns), torch.empty(columns, dtype=torch.int32)]
            own.scales, own.offsets = map(self._keep, parts[2:])
        pack = "recurra_pack_integers" if precision == "int8" else "recurra_pack_bfloats"
        function(pack)(*size, *(ctypes.c_void_p(part.data_ptr()) for part in parts))
        own.values = self._keep(values)
        return own

    def _copy(self, tensor: Tensor | None) -> int | None:
        return None if tensor is None else self._keep(tensor.detach().float().clone())

    def _keep(self, tensor: Tensor) -> int:
        tensor = tensor.detach().contiguous()
        self._held.append(tensor)
        return tensor.data_ptr()
