from __future__ import annotations

import numpy as np
import pytest

from recurra.data.columns import arrow_schema, build_block, bytes_per_step, check_example, convert, decode_block
from recurra.data.schema import Column, SequenceSchema
from recurra.errors import DataError, IntegrityError

SCHEMA = SequenceSchema(
    (
        Column("tokens", "uint16"),
        Column("x", "float32", width=2),
        Column("label", "int32", "sequence"),
        Column("embedding", "float32", "sequence", 3),
        Column("name", "string", "sequence"),
    )
)
ROWS = [
    {"tokens": [1, 2], "x": [[1.0, 2.0], [3.0, 4.0]], "label": -7, "embedding": [1, 2, 3], "name": "ä"},
    {"tokens": [65535], "x": [[5.0, 6.0]], "label": 9, "embedding": [4, 5, 6], "name": ""},
]


def converted(row):
    arrays = check_example(SCHEMA, row, 0)
    return {c.name: arrays[c.name] if c.dtype == "string" else convert(c, arrays[c.name], 0) for c in SCHEMA.columns}


def with_value(name, value):
    return {**ROWS[0], name: value}


def test_a_block_gives_back_what_went_in():
    """Every kind of column survives the trip through Arrow, with its own type."""
    batch = build_block(SCHEMA, [converted(row) for row in ROWS])

    rows = decode_block(SCHEMA, arrow_schema(SCHEMA), batch.serialize().to_pybytes())

    assert rows.offsets.tolist() == [0, 2, 3]
    assert rows.time["tokens"].tolist() == [1, 2, 65535]
    assert rows.time["tokens"].dtype == np.uint16
    assert rows.time["x"].tolist() == [[1, 2], [3, 4], [5, 6]]
    assert rows.sequence["label"].tolist() == [-7, 9]
    assert rows.sequence["embedding"].tolist() == [[1, 2, 3], [4, 5, 6]]
    assert rows.sequence["name"].to_pylist() == ["ä", ""]


def test_decoding_does_not_copy():
    """At 100 million steps a second there is no time for one."""
    data = build_block(SCHEMA, [converted(row) for row in ROWS]).serialize().to_pybytes()

    rows = decode_block(SCHEMA, arrow_schema(SCHEMA), data)

    assert np.shares_memory(rows.time["x"], np.frombuffer(data, np.uint8))


def test_nothing_is_nullable():
    """Readers take buffers as they are; a validity bitmap would make them lie."""

    def nullable(field):
        return field.nullable or (field.type.num_fields > 0 and nullable(field.type.field(0)))

    assert not any(nullable(field) for field in arrow_schema(SCHEMA))


def test_bytes_per_step_counts_all_time_columns():
    assert bytes_per_step(SCHEMA) == 2 + 2 * 4


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({k: v for k, v in ROWS[0].items() if k != "label"}, "Row 3 has no 'label'"),
        (with_value("label", None), "Row 3 has no 'label'"),
        (with_value("surplus", 1), "field 'surplus' that the schema lacks"),
        (with_value("tokens", [1, 2, 3]), "unequal length: tokens 3, x 2"),
        (with_value("x", [[1.0, 2.0, 3.0]] * 2), r"'x' has shape \[2, 3\]; the schema says \[T, 2\]"),
        (with_value("tokens", 5), r"'tokens' has shape \[\]; the schema says \[T\]"),
        (with_value("x", [[1.0], [1.0, 2.0]]), "steps of unequal size"),
        (with_value("name", 5), "'name' is int, not text"),
        ({**ROWS[0], "tokens": [], "x": np.zeros((0, 2))}, "Row 3 has no time step"),
    ],
)
def test_an_example_that_does_not_fit_is_named(row, message):
    """Row and column are what somebody needs to find the fault in a million lines."""
    with pytest.raises(DataError, match=message):
        check_example(SCHEMA, row, 3)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("x", [[1.0, 2.0], [3.0, np.nan]], "column 'x' has NaN.* at step 1"),
        ("x", [[np.inf, 2.0], [3.0, 1.0]], "column 'x' has NaN, infinity.* at step 0"),
        ("x", [[1e39, 2.0], [3.0, 1.0]], "beyond float32 at step 0"),
        ("embedding", [1.0, np.nan, 2.0], "column 'embedding' has NaN, infinity or a number beyond float32. "),
        ("x", [[1.0, None], [3.0, 1.0]], r"column 'x' holds nothing \(None\)"),
        ("tokens", [1, 70000], "holds 70000, outside 0 to 65535"),
        ("tokens", [1, -1], "holds -1, outside 0"),
        ("tokens", [1.5, 2.0], "holds fractions but is uint16"),
        ("tokens", ["a", "b"], "holds 'a' where numbers belong"),
    ],
)
def test_a_value_that_does_not_fit_is_named(name, value, message):
    """NaN in one row of a million makes a loss NaN hours later; here it is one line."""
    with pytest.raises(DataError, match=f"Row 0, {message}" if message.startswith("column") else message):
        converted(with_value(name, value))


def test_a_limit_is_the_vocabulary(recwarn):
    """An id that the embedding lacks would crash the device without a word."""
    with pytest.raises(DataError, match="holds 10, outside 0 to 9, the range of its vocabulary"):
        convert(Column("tokens", "uint16"), np.array([9, 10]), 0, limit=10)
    assert convert(Column("tokens", "uint16"), np.array([0, 9]), 0, limit=10).tolist() == [0, 9]


def test_bytes_that_are_no_block_are_an_integrity_error():
    """A checksum makes this unlikely; a crash inside Arrow would still be the wrong answer."""
    with pytest.raises(IntegrityError, match="no Arrow record batch"):
        decode_block(SCHEMA, arrow_schema(SCHEMA), b"\0" * 64)
