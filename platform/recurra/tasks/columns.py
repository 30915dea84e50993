"""Checks of a dataset's columns and metadata that several tasks share; each failure is a SchemaError."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from recurra.data.schema import Column, SequenceSchema
from recurra.data.vocabulary import Vocabulary
from recurra.errors import SchemaError

_WHOLE = ("uint8", "uint16", "uint32", "int32", "int64")


def token_column(schema: SequenceSchema, name: str) -> Column:
    """The time column of that name, if it holds one whole number a step."""
    column = schema.column(name)
    if column.axis != "time" or column.width is not None or column.dtype not in _WHOLE:
        raise SchemaError(
            f"Column '{name}' is {describe_column(column)}, and the task needs token ids: one whole number a step. "
            "Write the text with 'recurra data write' and a vocabulary, or name another column."
        )
    return column


def whole_column(schema: SequenceSchema, name: str) -> Column:
    """The sequence column of that name, if it holds one whole number a sequence."""
    column = schema.column(name)
    if column.axis != "sequence" or column.width is not None or column.dtype not in _WHOLE:
        raise SchemaError(
            f"Column '{name}' is {describe_column(column)}, and the task needs one whole number a sequence. "
            'Declare it with axis "sequence" and a whole type, such as int32.'
        )
    return column


def vocabulary_of(metadata: Mapping[str, Any], column: str) -> Vocabulary:
    """The vocabulary that the dataset's tokens were made with."""
    if "vocabulary" not in metadata:
        raise SchemaError(
            f"The dataset's metadata has no 'vocabulary', so the tokens of column '{column}' have no text. "
            "Write the dataset with a vocabulary: metadata={'vocabulary': vocabulary.to_json()}."
        )
    return Vocabulary.from_json(metadata["vocabulary"])


def flags_column(schema: SequenceSchema, name: str, count: int) -> Column:
    """The sequence column of that name, if it holds so many whole numbers a sequence."""
    column = schema.column(name)
    if column.axis != "sequence" or column.width != count or column.dtype not in _WHOLE:
        raise SchemaError(
            f"Column '{name}' is {describe_column(column)}, and with task.multi_label there must be one whole number for each "
            f"of the {count} labels, once a sequence. Write it with 'recurra data write --labels FIELD'."
        )
    return column


def text_column(schema: SequenceSchema, name: str) -> Column:
    """The sequence column of that name, if it holds a text a sequence."""
    column = schema.column(name)
    if column.dtype != "string":
        raise SchemaError(
            f"Column '{name}' is {describe_column(column)}, and the task needs one text a sequence. "
            "Write it with 'recurra data write --target FIELD', or declare it with dtype string."
        )
    return column


def target_vocabulary_of(metadata: Mapping[str, Any], column: str) -> Vocabulary:
    """The vocabulary that cuts the texts of a column into what the model is to say."""
    if "target_vocabulary" not in metadata:
        raise SchemaError(
            f"The dataset's metadata has no 'target_vocabulary', so nothing says how column '{column}' is cut. "
            "Write the dataset with 'recurra data write --target FIELD', or with metadata={'target_vocabulary': ...}."
        )
    return Vocabulary.from_json(metadata["target_vocabulary"])


def describe_column(column: Column) -> str:
    """Such as `float32 [T, 3]`."""
    axes = (["T"] if column.axis == "time" else []) + ([str(column.width)] if column.width is not None else [])
    return f"{column.dtype} [{', '.join(axes)}]" if axes else f"{column.dtype}, one a sequence"
