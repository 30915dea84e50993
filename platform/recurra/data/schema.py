"""What one sequence of a dataset holds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from recurra.errors import SchemaError

DType = Literal["uint8", "uint16", "uint32", "int32", "int64", "float32", "string"]


@dataclass(frozen=True)
class Column:
    """One column.

    `axis="time"`: one value a time step; all time columns of a sequence have the same length T.
    `axis="sequence"`: one value a sequence.
    """

    name: str
    dtype: DType
    axis: Literal["time", "sequence"] = "time"
    width: int | None = None
    """Values in one step (or one sequence): None = a scalar, F = a vector [F]. Not for strings."""


@dataclass(frozen=True)
class SequenceSchema:
    """Columns of a dataset, in order. At least one has `axis="time"`; names are unique."""

    columns: tuple[Column, ...]

    def __post_init__(self) -> None:
        names = [column.name for column in self.columns]
        if len(set(names)) != len(names):
            raise SchemaError(f"Column names repeat: {', '.join(names)}. Give each column a name of its own.")
        if not self.time_columns:
            raise SchemaError(f"None of {', '.join(names) or 'no columns'} has axis 'time'. Give one column that axis.")

    @property
    def time_columns(self) -> tuple[Column, ...]:
        return tuple(column for column in self.columns if column.axis == "time")

    @property
    def sequence_columns(self) -> tuple[Column, ...]:
        return tuple(column for column in self.columns if column.axis == "sequence")

    def column(self, name: str) -> Column:
        """The column of that name.

        Raises:
            SchemaError: There is none; the message lists those there are.
        """
        for column in self.columns:
            if column.name == name:
                return column
        raise SchemaError(
            f"The dataset has no column '{name}'. It has: {', '.join(c.name for c in self.columns)}. "
            "Write it with 'recurra data write', or name another column in the task."
        )

    def to_json(self) -> list[dict[str, Any]]:
        return [{"name": c.name, "dtype": c.dtype, "axis": c.axis, "width": c.width} for c in self.columns]

    @classmethod
    def from_json(cls, value: list[dict[str, Any]]) -> SequenceSchema:
        return cls(tuple(Column(**item) for item in value))
