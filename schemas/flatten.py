"""One valid document to the canonical columns, row by row: what the typed decoder does, for the documents that it left."""

from collections.abc import Iterator, Mapping
from decimal import ROUND_HALF_EVEN, Decimal, InvalidOperation, localcontext
from typing import Any

import msgspec
import pyarrow as pa

from headrace.schemas.columns import EVENT_SCHEMA, JSON_COLUMNS, MONEY
from headrace.schemas.failures import Failure
from headrace.schemas.json_text import canonical, pointer
from headrace.schemas.registry import Field, Schema
from headrace.schemas.rfc3339 import parse_one

_STEP = Decimal(1).scaleb(-MONEY.scale)
_LIMIT = Decimal(10) ** (MONEY.precision - MONEY.scale)


class FlattenError(ValueError):
    """A valid document holds a value that its column can't hold; ``failure`` says which."""

    def __init__(self, code: str, path: tuple[str, ...], message: str) -> None:
        super().__init__(message)
        self.failure = Failure(code, pointer(path), message)


class Flattener:
    """Maps documents of one schema onto ``EVENT_SCHEMA``. Pure and picklable.

    A named property goes to its column (``x-column``); what an object with ``x-rest`` holds besides goes to that JSON column;
    every other field that the schema does not name goes to ``extra`` under its JSON pointer. Nothing is dropped.
    """

    def __init__(self, schema: Schema) -> None:
        self.schema = schema
        self._fields = {field.path: field for field in schema.fields}

    def __call__(self, document: Mapping[str, Any]) -> dict[str, Any]:
        """Returns column → Python value (times as microseconds, money as Decimal, JSON as text).

        Args:
            document: valid, as read by ``json_text.parse_exact``.

        Raises:
            FlattenError: a number or a time that the column can't hold.
        """
        row: dict[str, Any] = {}
        members: dict[str, dict[str, Any]] = {}
        for path, node, value in _walk(self.schema.document, document, ()):
            field = self._fields.get(path)
            if field is None:
                rest = node.get("x-rest")
                if rest:
                    members.setdefault(rest, {})[path[-1]] = value
                else:
                    members.setdefault("extra", {})[pointer(path)] = value
            elif "/" in field.column:
                if value is not None:
                    column, _, name = field.column.partition("/")
                    members.setdefault(column, {})[name] = value
            elif value is not None:
                row[field.column] = _convert(field, value)
        for column, values in members.items():
            row[column] = canonical({**_object_of(row.get(column)), **values})
        return row


def _walk(
    node: Mapping[str, Any], value: Mapping[str, Any], path: tuple[str, ...]
) -> Iterator[tuple[tuple[str, ...], Mapping[str, Any], Any]]:
    """Yields (path, schema of the enclosing object, value) of every leaf, named or not."""
    named = node.get("properties", {})
    for name, child in value.items():
        inner = named.get(name)
        if inner is not None and "properties" in inner and isinstance(child, dict):
            yield from _walk(inner, child, (*path, name))
        else:
            yield (*path, name), node, child


def _convert(field: Field, value: Any) -> Any:
    if field.column in JSON_COLUMNS:
        return canonical(value)
    type_ = EVENT_SCHEMA.field(field.column).type
    if type_ == MONEY:
        return _money(field, value)
    if pa.types.is_integer(type_):
        return _integer(field, value, type_)
    if pa.types.is_timestamp(type_):
        micros = parse_one(value)
        if micros is None:
            raise FlattenError("time_out_of_range", field.path, "date-time outside of the years 1 to 9999")
        return micros
    if field.column == "event_id":
        return value.lower()
    return value if isinstance(value, str) else canonical(value)


def _money(field: Field, value: Any) -> Decimal:
    """Numbers are rounded half even to 9 decimals (binary floating point leaves noise there); strings must be exact."""
    text = bytes(value).decode() if isinstance(value, msgspec.Raw) else str(value)
    try:
        number = Decimal(text)
        with localcontext(prec=MONEY.precision + 10):
            rounded = number.quantize(_STEP, ROUND_HALF_EVEN)
    except InvalidOperation:
        raise FlattenError("decimal_out_of_range", field.path, f"not a decimal of {_digits()}") from None
    if not rounded.is_finite() or abs(rounded) >= _LIMIT or (isinstance(value, str) and rounded != number):
        raise FlattenError("decimal_out_of_range", field.path, f"not a decimal of {_digits()}")
    return rounded


def _digits() -> str:
    return f"at most {MONEY.precision - MONEY.scale} digits before and {MONEY.scale} after the point"


def _integer(field: Field, value: Any, type_: pa.DataType) -> int:
    number = Decimal(bytes(value).decode()) if isinstance(value, msgspec.Raw) else Decimal(str(value))
    bits = type_.bit_width - 1
    if number != number.to_integral_value() or not -(2**bits) <= number < 2**bits:
        raise FlattenError("integer_out_of_range", field.path, f"not an integer of {type_.bit_width} bits")
    return int(number)


def _object_of(text: str | None) -> dict[str, Any]:
    """A JSON column that is filled from a property of its own and from the rest."""
    if text is None:
        return {}
    value = msgspec.json.decode(text.encode(), type=dict[str, msgspec.Raw])
    return dict(value)
