from __future__ import annotations

import pytest

from recurra.data.schema import Column, SequenceSchema
from recurra.errors import SchemaError

SCHEMA = SequenceSchema((Column("tokens", "uint16"), Column("place", "float32", "sequence", 2)))


def test_a_column_is_found_by_its_name():
    assert SCHEMA.column("place").width == 2
    assert [column.name for column in SCHEMA.time_columns] == ["tokens"]
    assert [column.name for column in SCHEMA.sequence_columns] == ["place"]


def test_a_missing_column_names_those_there_are():
    """The task says which it wants; the user must see which to rename."""
    with pytest.raises(SchemaError, match="no column 'text'. It has: tokens, place"):
        SCHEMA.column("text")


def test_json_gives_back_the_same_schema():
    assert SequenceSchema.from_json(SCHEMA.to_json()) == SCHEMA


def test_a_name_twice_is_refused():
    with pytest.raises(SchemaError, match="Column names repeat: a, a"):
        SequenceSchema((Column("a", "uint8"), Column("a", "uint8")))


def test_a_schema_without_time_is_refused():
    """A row without steps is nothing for a recurrent net."""
    with pytest.raises(SchemaError, match="None of label has axis 'time'"):
        SequenceSchema((Column("label", "int32", "sequence"),))
