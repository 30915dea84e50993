"""Columns between numpy and Arrow: checking what a caller gives, building blocks, and reading them back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from recurra.data.schema import Column, SequenceSchema
from recurra.errors import DataError, IntegrityError

Array = NDArray[np.generic]
Values = Array | list[str]
"""One column of several rows, end to end: time columns [steps] or [steps, F], sequence columns [rows], [rows, F], text."""


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """Rows of one block, decoded without copying: every array is a view of the block's bytes."""

    offsets: NDArray[np.int32]
    """[rows + 1] first step of each row, and the end of the last."""
    time: dict[str, Array]
    """[steps] or [steps, F]."""
    sequence: dict[str, Any]
    """[rows] or [rows, F]; strings as Arrow arrays."""
    numbers: NDArray[np.int64] | None = None
    """[rows] which rows of the block these are, when they do not stand in the block's order."""

    @property
    def steps(self) -> int:
        return int(self.offsets[-1])


def bytes_per_step(schema: SequenceSchema) -> int:
    """Bytes of one time step over all time columns."""
    return sum(np.dtype(column.dtype).itemsize * (column.width or 1) for column in schema.time_columns)


def arrow_schema(schema: SequenceSchema) -> pa.Schema:
    """Time columns are lists, sequence columns scalars, fixed lists or strings; nothing is nullable."""
    fields = []
    for column in schema.columns:
        kind = pa.string() if column.dtype == "string" else pa.type_for_alias(column.dtype)
        if column.width is not None:
            kind = pa.list_(_item(kind), column.width)
        if column.axis == "time":
            kind = pa.list_(_item(kind))
        fields.append(pa.field(column.name, kind, nullable=False))
    return pa.schema(fields)


def check_example(schema: SequenceSchema, example: Mapping[str, Any], row: int) -> dict[str, Any]:
    """Arrays of the right shape for every column, not yet converted, so that a memory-mapped one stays on disk.

    Raises:
        DataError: A column is missing or unknown, has no step, another shape or another length than its neighbours.
    """
    checked: dict[str, Any] = {}
    lengths: dict[str, int] = {}
    for column in schema.columns:
        value = example.get(column.name)
        if value is None:
            raise DataError(f"Row {row} has no '{column.name}'. Give every column of every row a value.")
        if column.dtype == "string":
            checked[column.name] = _text(column, value, row)
            continue
        array = _shaped(column, value, row)
        if column.axis == "time":
            lengths[column.name] = len(array)
        checked[column.name] = array
    if len(example) != len(checked):
        unknown = sorted(set(example) - set(checked))
        raise DataError(
            f"Row {row} has a field '{unknown[0]}' that the schema lacks. Its columns are: {', '.join(checked)}."
        )
    _check_lengths(lengths, row)
    return checked


def convert(column: Column, array: Array, row: int, limit: int | None = None) -> Array:
    """A copy of the values in the column's own type.

    Raises:
        DataError: A value is missing, not finite, not a whole number, or outside the type's range or below `limit`.
    """
    dtype = np.dtype(column.dtype)
    if array.dtype.kind not in "biuf":
        raise DataError(f"Row {row}, column '{column.name}' holds {_seen(array)} where numbers belong. Leave none out.")
    if dtype.kind == "f":
        with np.errstate(over="ignore"):
            values = array.astype(dtype)
        if not np.isfinite(values).all():
            raise DataError(
                f"Row {row}, column '{column.name}' has NaN, infinity or a number beyond float32"
                f"{_first_bad_step(values) if column.axis == 'time' else ''}. Fill it in or leave the row out."
            )
        return values
    if array.dtype.kind == "f":
        raise DataError(f"Row {row}, column '{column.name}' holds fractions but is {column.dtype}. Declare it float32.")
    if array.dtype == dtype and (limit is None or not array.size or (dtype.kind == "u" and array.max() < limit)):
        return array.copy()
    if array.size:
        low, high = int(array.min()), int(array.max())
        bounds = np.iinfo(dtype)
        bottom, top = (int(bounds.min), int(bounds.max)) if limit is None else (0, min(int(bounds.max), limit - 1))
        if low < bottom or high > top:
            raise DataError(
                f"Row {row}, column '{column.name}' holds {high if high > top else low}, outside {bottom} to {top}"
                f"{'' if limit is None else ', the range of its vocabulary'}. Correct the value or widen the column."
            )
    return array.astype(dtype)


def build_block(schema: SequenceSchema, rows: Sequence[Mapping[str, Any]]) -> pa.RecordBatch:
    """One record batch of converted rows."""
    arrow = arrow_schema(schema)
    arrays = []
    for column in schema.columns:
        values = [row[column.name] for row in rows]
        kind = arrow.field(column.name).type
        if column.dtype == "string":
            encoded = [value.encode() for value in values]
            arrays.append(pa.StringArray.from_buffers(len(values), _offsets(encoded), pa.py_buffer(b"".join(encoded))))
        elif column.axis == "sequence":
            arrays.append(_flat_array(np.stack(values), kind))
        else:
            starts = pa.Array.from_buffers(pa.int32(), len(values) + 1, [None, _offsets(values)])
            inner = _flat_array(np.concatenate(values), kind.value_type)
            arrays.append(pa.ListArray.from_arrays(starts, inner, type=kind))
    return pa.record_batch(arrays, schema=arrow)


def decode_block(schema: SequenceSchema, arrow: pa.Schema, data: bytes | memoryview) -> Rows:
    """The rows of one encapsulated record batch.

    Raises:
        IntegrityError: The bytes are no record batch of this schema.
    """
    try:
        batch = pa.ipc.read_record_batch(pa.ipc.read_message(pa.py_buffer(data)), arrow)
    except (pa.ArrowInvalid, OSError, EOFError) as exc:
        raise IntegrityError(f"A block is no Arrow record batch of the dataset's schema: {exc}") from exc
    time: dict[str, Array] = {}
    sequence: dict[str, Any] = {}
    offsets: NDArray[np.int32] | None = None
    for column, array in zip(schema.columns, batch.columns, strict=True):
        if column.axis == "time":
            here = _numbers(array.offsets, np.dtype(np.int32))
            if offsets is not None and not np.array_equal(here, offsets):
                raise IntegrityError(f"Column '{column.name}' has other lengths than its neighbours in one block.")
            offsets = here
            time[column.name] = _flat_view(column, array.values)
        else:
            sequence[column.name] = array if column.dtype == "string" else _flat_view(column, array)
    assert offsets is not None  # a schema has a time column
    return Rows(offsets, time, sequence)


def take_rows(rows: Rows, numbers: NDArray[np.int64]) -> Rows:
    """The time columns of a block with its rows in another order, copied; sequence columns are left out."""
    lows, highs = rows.offsets[:-1][numbers], rows.offsets[1:][numbers]
    apart = np.flatnonzero(np.append(True, highs[:-1] != lows[1:]))  # rows that stay neighbours are copied together
    cuts = list(zip(lows[apart].tolist(), np.append(highs[apart[1:] - 1], highs[-1]).tolist(), strict=True))
    offsets = np.zeros(len(rows.offsets), np.int32)
    np.cumsum(highs - lows, out=offsets[1:])
    time = {name: np.concatenate([values[low:high] for low, high in cuts]) for name, values in rows.time.items()}
    return Rows(offsets, time, {}, numbers)


def _item(kind: pa.DataType) -> pa.Field:
    return pa.field("item", kind, nullable=False)


def _text(column: Column, value: Any, row: int) -> str:
    if not isinstance(value, str):
        raise DataError(f"Row {row}, column '{column.name}' is {type(value).__name__}, not text.")
    return value


def _shaped(column: Column, value: Any, row: int) -> Array:
    try:
        array = np.asarray(value)
    except ValueError as exc:
        raise DataError(f"Row {row}, column '{column.name}' has steps of unequal size. Give each the same.") from exc
    wanted = (("T",) if column.axis == "time" else ()) + (() if column.width is None else (column.width,))
    fits = array.ndim == len(wanted) and (column.width is None or array.shape[-1] == column.width)
    if not fits:
        raise DataError(
            f"Row {row}, column '{column.name}' has shape {list(array.shape)}; "
            f"the schema says [{', '.join(str(size) for size in wanted)}]."
        )
    return array


def _check_lengths(lengths: Mapping[str, int], row: int) -> None:
    if len(set(lengths.values())) > 1:
        seen = ", ".join(f"{name} {length}" for name, length in lengths.items())
        raise DataError(f"Row {row} has time columns of unequal length: {seen}. Cut or fill them to one length.")
    if 0 in lengths.values():
        raise DataError(f"Row {row} has no time step. Leave empty sequences out.")


def _first_bad_step(values: Array) -> str:
    good = np.isfinite(values).reshape(len(values), -1).all(axis=1)
    return f" at step {int(np.argmin(good))}"


def _seen(array: Array) -> str:
    """A word for what stands where numbers belong."""
    flat = array.reshape(-1)
    odd = next((value for value in flat.tolist() if not isinstance(value, int | float)), flat[:1].tolist())
    return "nothing (None)" if odd is None else repr(odd)


def _offsets(values: Sequence[Array | bytes]) -> pa.Buffer:
    """Where each value starts, and where the last ends."""
    offsets = np.zeros(len(values) + 1, np.int32)
    np.cumsum([len(value) for value in values], out=offsets[1:])
    return pa.py_buffer(offsets)


def _flat_array(values: Array, kind: pa.DataType) -> pa.Array:
    """Numbers as an Arrow array of the same memory; `pa.array` would do, but imports pandas (half a second) to look."""
    if pa.types.is_fixed_size_list(kind):
        return pa.FixedSizeListArray.from_arrays(_flat_array(values.reshape(-1), kind.value_type), type=kind)
    return pa.Array.from_buffers(kind, len(values), [None, pa.py_buffer(np.ascontiguousarray(values))])


def _flat_view(column: Column, array: pa.Array) -> Array:
    dtype = np.dtype(column.dtype)
    if column.width is None:
        return _numbers(array, dtype)
    return _numbers(array.values, dtype).reshape(-1, column.width)


def _numbers(array: pa.Array, dtype: np.dtype[Any]) -> NDArray[Any]:
    """A view of an Arrow array without nulls; `to_numpy` would import pandas first."""
    return np.frombuffer(array.buffers()[1], dtype)[array.offset : array.offset + len(array)]
