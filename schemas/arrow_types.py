"""JSON Schema → Arrow types, in one place."""

from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from headrace.schemas.columns import MONEY, STRING, TIME

_SIMPLE = {"boolean": pa.bool_(), "integer": pa.int64(), "number": pa.float64(), "string": STRING}


def arrow_type(subschema: Mapping[str, Any]) -> pa.DataType:
    """Returns the type of a column that holds every valid value of a property; null is always possible.

    | the property | Arrow |
    |---|---|
    | ``x-decimal`` (a number, or a string that holds one) | ``decimal128(38, 9)`` |
    | string with format ``date-time`` | ``timestamp[us, UTC]`` |
    | string, boolean, integer | ``string``, ``bool``, ``int64`` |
    | number, or integer and number | ``double`` |
    | object, array, several types, any value, or not stated | ``string`` that holds canonical JSON text |

    The type is read from ``type``, else from the values of ``enum`` or ``const``; references are not followed.
    """
    if subschema.get("x-decimal"):
        return MONEY
    types = _types(subschema) - {"null"}
    if types == {"string"} and subschema.get("format") == "date-time":
        return TIME
    if types == {"integer", "number"}:
        return _SIMPLE["number"]
    return _SIMPLE.get(types.pop(), STRING) if len(types) == 1 else STRING


def _types(subschema: Mapping[str, Any]) -> set[str]:
    stated = subschema.get("type")
    if isinstance(stated, str):
        return {stated}
    if stated is not None:
        return set(stated)
    values = subschema.get("enum", [subschema["const"]] if "const" in subschema else [])
    return {_type_of(value) for value in values}


def _type_of(value: Any) -> str:
    if value is None:
        return "null"
    for kind, name in ((bool, "boolean"), (int, "integer"), (float, "number"), (str, "string")):
        if isinstance(value, kind):
            return name
    return "object" if isinstance(value, dict) else "array"
