"""Tensors of the Open Inference Protocol: JSON, and the binary extension in which their bytes stand after the JSON.

Protocol: https://kserve.github.io/website/docs/concepts/architecture/data-plane/v2-protocol, and Triton's
`extension_binary_data.md` for the binary form.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recurra.errors import RequestError

DTYPES = {
    "BOOL": "?",
    "UINT8": "u1",
    "UINT16": "<u2",
    "UINT32": "<u4",
    "UINT64": "<u8",
    "INT8": "i1",
    "INT16": "<i2",
    "INT32": "<i4",
    "INT64": "<i8",
    "FP16": "<f2",
    "FP32": "<f4",
    "FP64": "<f8",
}
"""Numeric datatypes and their NumPy form, little endian as the binary extension has them."""
BYTES = "BYTES"
BINARY_SIZE = "binary_data_size"
LENGTH_BYTES = 4
"""Before each element of a binary BYTES tensor stands its length, little endian."""


@dataclass(frozen=True)
class TensorSpec:
    """What the metadata of a model say of one tensor."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    """-1 = any size."""

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, "datatype": self.datatype, "shape": list(self.shape)}


@dataclass(frozen=True)
class Tensor:
    """One tensor of a request or an answer; BYTES are an object array of `str` or `bytes`."""

    name: str
    datatype: str
    values: NDArray[Any]


def from_json(name: str, datatype: str, shape: Sequence[int], data: Any) -> Tensor:
    """A tensor whose elements stand in the JSON, flat or nested.

    Raises:
        RequestError: 422 when the datatype is unknown, or the elements do not fit datatype or shape.
    """
    flat = _flat(data)
    if datatype == BYTES:
        if not all(isinstance(item, str) for item in flat):
            raise _misfit(name, "holds something that is no string", "Send BYTES as a list of strings.")
        values = np.array(flat, dtype=object)
    else:
        kind = np.dtype(_numeric(name, datatype))
        allowed = (bool,) if kind.kind == "b" else (int,) if kind.kind in "iu" else (int, float)
        if not all(isinstance(item, allowed) and (kind.kind == "b" or not isinstance(item, bool)) for item in flat):
            raise _misfit(name, f"holds something that is no {datatype}", "Send numbers of its datatype.")
        try:
            values = np.array(flat, dtype=kind)
        except OverflowError as exc:
            raise _misfit(name, f"holds a number beyond {datatype}", "Send numbers of its datatype.") from exc
    return Tensor(name, datatype, _shaped(name, values, shape))


def from_binary(name: str, datatype: str, shape: Sequence[int], data: bytes) -> Tensor:
    """A tensor whose elements stand after the JSON.

    Raises:
        RequestError: 422 when the datatype is unknown, or the bytes do not fit datatype or shape.
    """
    if datatype == BYTES:
        return Tensor(name, datatype, _shaped(name, _split(name, data), shape))
    kind = np.dtype(_numeric(name, datatype))
    if len(data) % kind.itemsize:
        raise _misfit(name, f"has {len(data)} bytes", f"Send {kind.itemsize} for each {datatype}.")
    return Tensor(name, datatype, _shaped(name, np.frombuffer(data, kind), shape))


def to_json(tensor: Tensor) -> dict[str, Any]:
    """As an item of `outputs`, its elements in `data`, flat."""
    return {**_head(tensor), "data": tensor.values.ravel().tolist()}


def to_binary(tensor: Tensor) -> tuple[dict[str, Any], bytes]:
    """As an item of `outputs`, and the bytes that stand after the JSON."""
    if tensor.datatype == BYTES:
        items = [item.encode() if isinstance(item, str) else item for item in tensor.values.ravel()]
        data = b"".join(struct.pack("<I", len(item)) + item for item in items)
    else:
        data = np.ascontiguousarray(tensor.values, DTYPES[tensor.datatype]).tobytes()
    return {**_head(tensor), "parameters": {BINARY_SIZE: len(data)}}, data


def _head(tensor: Tensor) -> dict[str, Any]:
    return {"name": tensor.name, "datatype": tensor.datatype, "shape": list(tensor.values.shape)}


def _flat(data: Any) -> list[Any]:
    found: list[Any] = []
    waiting = [data]
    while waiting:  # not by recursion: the nesting is the client's
        item = waiting.pop()
        if isinstance(item, list):
            waiting.extend(reversed(item))
        else:
            found.append(item)
    return found


def _split(name: str, data: bytes) -> NDArray[Any]:
    items: list[str] = []
    place = 0
    while place < len(data):
        length = int.from_bytes(data[place : place + LENGTH_BYTES], "little")
        place += LENGTH_BYTES
        item = data[place : place + length]
        if len(item) < length:
            raise _misfit(name, "ends within an element", "Write each element's length before it.")
        try:
            items.append(item.decode())
        except UnicodeDecodeError as exc:
            raise _misfit(name, "holds bytes that are no UTF-8", "Send text as UTF-8.") from exc
        place += length
    return np.array(items, dtype=object)


def _numeric(name: str, datatype: str) -> str:
    if datatype not in DTYPES:
        raise _misfit(name, f"has datatype '{datatype[:20]}'", f"Use one of {', '.join(DTYPES)}, {BYTES}.")
    return DTYPES[datatype]


def _shaped(name: str, values: NDArray[Any], shape: Sequence[int]) -> NDArray[Any]:
    wanted = 1
    for size in shape:
        wanted *= size
    if wanted != values.size:
        raise _misfit(name, f"has {values.size} elements", f"Its shape {list(shape)[:8]} wants {wanted}.")
    return values.reshape(tuple(shape))


def _misfit(name: str, seen: str, advice: str) -> RequestError:
    return RequestError(f"Tensor '{name[:100]}' {seen}. {advice}", code="invalid_tensor", param=f"inputs.{name[:100]}")
