"""JSON Schema → Arrow, and its agreement with the canonical columns."""

from typing import Any

import pyarrow as pa
import pytest

from headrace.schemas.arrow_types import arrow_type
from headrace.schemas.columns import EVENT_SCHEMA, MONEY, TIME
from headrace.schemas.registry import Field, Registry

FIELDS = [
    (name, field)
    for name in Registry.default().names()
    for field in Registry.default().get(name).fields
    if "/" not in field.column
]
NARROWED = {"http_status": pa.int32()}


@pytest.mark.parametrize(("family", "field"), FIELDS, ids=lambda item: getattr(item, "column", item))
def test_every_column_of_every_family_agrees_with_the_canonical_columns(family: str, field: Field) -> None:
    column = EVENT_SCHEMA.field(field.column).type
    if pa.types.is_dictionary(column):
        column = column.value_type
    expected = arrow_type(field.schema)
    if field.column in NARROWED:
        assert expected == pa.int64() and column == NARROWED[field.column]
        assert field.schema["maximum"] < 2**31
    else:
        assert expected == column


@pytest.mark.parametrize(
    ("subschema", "expected"),
    [
        ({"type": "string"}, pa.string()),
        ({"type": ["null", "string"]}, pa.string()),
        ({"type": "string", "format": "date-time"}, TIME),
        ({"type": ["string", "null"], "format": "date-time"}, TIME),
        ({"type": ["string", "integer"], "format": "date-time"}, pa.string()),
        ({"type": "integer"}, pa.int64()),
        ({"type": "number"}, pa.float64()),
        ({"type": ["integer", "number", "null"]}, pa.float64()),
        ({"type": "boolean"}, pa.bool_()),
        ({"type": ["number", "string", "null"], "x-decimal": True}, MONEY),
        ({"type": "object"}, pa.string()),
        ({"type": "array"}, pa.string()),
        ({"type": ["integer", "string"]}, pa.string()),
        ({"type": "null"}, pa.string()),
        ({}, pa.string()),
        ({"enum": ["a", None]}, pa.string()),
        ({"enum": [1, 2]}, pa.int64()),
        ({"enum": [1, 2.5]}, pa.float64()),
        ({"enum": [True]}, pa.bool_()),
        ({"enum": [{}, []]}, pa.string()),
        ({"const": 5}, pa.int64()),
        ({"const": None}, pa.string()),
    ],
)
def test_types(subschema: dict[str, Any], expected: pa.DataType) -> None:
    assert arrow_type(subschema) == expected
