"""One valid document to the canonical columns, row by row: what the typed decoder does, for the documents that it left."""

from collections.abc import Callable, Mapping
from decimal import ROUND_HALF_EVEN, Decimal, InvalidOperation, localcontext
from typing import Any

import pyarrow as pa

from headrace.schemas.columns import EVENT_SCHEMA, JSON_COLUMNS, MONEY
from headrace.schemas.failures import Failure
from headrace.schemas.json_text import ExactNumber, canonical, parse_exact, pointer
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
        self._tree = _Place(schema.document, (), {field.path: field for field in schema.fields})

    def __call__(self, document: Mapping[str, Any]) -> dict[str, Any]:
        """Returns column → Python value (times as microseconds, money as Decimal, JSON as text).

        Args:
            document: valid, as read by ``json_text.parse_exact``.

        Raises:
            FlattenError: a number or a time that the column can't hold.
        """
        row: dict[str, Any] = {}
        members: dict[str, dict[str, Any]] = {}
        self._tree.read(document, row, members)
        for column, values in members.items():
            row[column] = canonical({**_object_of(row.get(column)), **values})
        return row


class _Place:
    """One object of the schema: what to do with each of its members."""

    def __init__(
        self, node: Mapping[str, Any], path: tuple[str, ...], fields: Mapping[tuple[str, ...], Field]
    ) -> None:
        self._path = path
        self._rest = node.get("x-rest")
        self._inner: dict[str, _Place] = {}
        self._leaves: dict[str, tuple[Field, str, str, Callable[[Field, Any], Any] | None]] = {}
        for name, child in node["properties"].items():
            field = fields.get((*path, name))
            if "properties" in child:
                self._inner[name] = _Place(child, (*path, name), fields)
            if field is not None:
                column, _, member = field.column.partition("/")
                self._leaves[name] = (field, column, member, None if member else _converter(field))

    def read(self, value: Mapping[str, Any], row: dict[str, Any], members: dict[str, dict[str, Any]]) -> None:
        for name, item in value.items():
            leaf = self._leaves.get(name)
            if leaf is not None:
                if item is None:
                    continue
                field, column, member, convert = leaf
                if member:
                    members.setdefault(column, {})[member] = item
                else:
                    row[column] = item if convert is None else convert(field, item)
            elif isinstance(item, dict) and name in self._inner:
                self._inner[name].read(item, row, members)
            elif self._rest:
                members.setdefault(self._rest, {})[name] = item
            else:
                members.setdefault("extra", {})[pointer((*self._path, name))] = item


def _converter(field: Field) -> Callable[[Field, Any], Any] | None:
    """What makes a document's value one of its column; None: it is one already."""
    if field.column in JSON_COLUMNS:
        return _json
    type_ = EVENT_SCHEMA.field(field.column).type
    if type_ == MONEY:
        return _money
    if pa.types.is_integer(type_):
        return _integer
    if pa.types.is_timestamp(type_):
        return _micros
    if field.column == "event_id":
        return _lower
    types = field.schema.get("type", ())
    return (
        None if set([types] if isinstance(types, str) else types) <= {"string", "null"} and types else _text
    )


def _json(field: Field, value: Any) -> str:
    return canonical(value)


def _lower(field: Field, value: str) -> str:
    return value.lower()


def _text(field: Field, value: Any) -> str:
    return value if isinstance(value, str) else canonical(value)


def _micros(field: Field, value: str) -> int:
    micros = parse_one(value)
    if micros is None:
        raise FlattenError("time_out_of_range", field.path, "date-time outside of the years 1 to 9999")
    return micros


def _money(field: Field, value: Any) -> Decimal:
    """Numbers are rounded half even to 9 decimals (binary floating point leaves noise there); strings must be exact."""
    try:
        number = Decimal(_number_text(value))
        with localcontext(prec=MONEY.precision + 10):
            rounded = number.quantize(_STEP, ROUND_HALF_EVEN)
    except InvalidOperation:
        raise FlattenError("decimal_out_of_range", field.path, f"not a decimal of {_digits()}") from None
    if not rounded.is_finite() or abs(rounded) >= _LIMIT or (isinstance(value, str) and rounded != number):
        raise FlattenError("decimal_out_of_range", field.path, f"not a decimal of {_digits()}")
    return rounded


def _number_text(value: Any) -> str:
    return value.text if isinstance(value, ExactNumber) else str(value)


def _digits() -> str:
    return f"at most {MONEY.precision - MONEY.scale} digits before and {MONEY.scale} after the point"


def _integer(field: Field, value: Any) -> int:
    type_ = EVENT_SCHEMA.field(field.column).type
    number = Decimal(_number_text(value))
    bits = type_.bit_width - 1
    if number != number.to_integral_value() or not -(2**bits) <= number < 2**bits:
        raise FlattenError("integer_out_of_range", field.path, f"not an integer of {type_.bit_width} bits")
    return int(number)


def _object_of(text: str | None) -> dict[str, Any]:
    """A JSON column that is filled from a property of its own and from the rest."""
    if text is None:
        return {}
    return dict(parse_exact(text.encode()))
