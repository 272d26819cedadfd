"""JSON documents from rows of Python values: what CSV, Parquet, Avro and mapped records become."""

import base64
import json
import math
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import orjson

from headrace.connectors.raw_blocks import FAULT_BYTES
from headrace.schemas.errors import InputError
from headrace.schemas.json_text import ExactNumber

_SCALE = 9
"""Decimals that money has at most; zeros beyond them are not written."""
_MICROSECOND = timedelta(microseconds=1)


class NotJsonError(ValueError):
    """A value that JSON can't hold."""


def encode(document: Any) -> bytes:
    """Writes JSON; an :class:`ExactNumber` or :class:`orjson.Fragment` in it is written as it stands."""
    return orjson.dumps(document, default=_exact, option=orjson.OPT_PASSTHROUGH_DATACLASS)


def paths_of(names: Sequence[str], path: str) -> list[tuple[str, ...]]:
    """Returns where each column goes in the document: ``a.b`` becomes ``{"a": {"b": …}}``.

    Raises:
        InputError: an empty or repeated name, or one that is both a value and an object (``a`` beside ``a.b``).
    """
    paths = [tuple(name.split(".")) for name in names]
    taken: set[tuple[str, ...]] = set()
    for name, parts in zip(names, paths, strict=True):
        if not all(part.strip() for part in parts):
            raise InputError(f"{path}: column name {name!r} is empty, or has an empty part; name the column")
        if parts in taken:
            raise InputError(f"{path}: column {name!r} occurs twice; rename one of them")
        taken.add(parts)
    for parts in paths:
        for i in range(1, len(parts)):
            if parts[:i] in taken:
                raise InputError(
                    f"{path}: column {'.'.join(parts[:i])!r} stands beside {'.'.join(parts)!r}, which makes it an object; "
                    "rename one of them"
                )
    return paths


def nest(row: Mapping[str, Any], paths: Mapping[str, tuple[str, ...]]) -> dict[str, Any]:
    """Returns the row as a document: JSON values (see :func:`jsonable`), nulls left out, dotted names nested.

    Raises:
        NotJsonError: a value that JSON can't hold.
    """
    document: dict[str, Any] = {}
    for name, value in row.items():
        if value is None:
            continue
        place = document
        path = paths[name]
        for part in path[:-1]:
            place = place.setdefault(part, {})
        place[path[-1]] = jsonable(value)
    return document


def jsonable(value: Any) -> Any:
    """Returns the value as JSON has it.

    Decimals become text with every digit (zeros beyond nine decimals are dropped); times RFC 3339 in UTC, naive ones taken
    as UTC; dates and times of day ISO 8601; durations whole microseconds; bytes their text, or base64 if they are not
    UTF-8; members of objects that are null are left out.

    Raises:
        NotJsonError: NaN or infinity, or a type without a JSON form.
    """
    kind = type(value)
    if kind in (str, int, bool) or value is None:
        return value
    convert = _CONVERT.get(kind)
    if convert is None:
        raise NotJsonError(f"values of type {kind.__name__} have no JSON form")
    return convert(value)


def loose_text(value: Any) -> bytes:
    """Returns a readable text of what JSON can't hold (NaN as ``NaN``), cut to ``FAULT_BYTES``."""
    return json.dumps(value, default=str, ensure_ascii=False).encode("utf-8", "replace")[:FAULT_BYTES]


def decimal_text(value: Decimal) -> str:
    """Returns a decimal without exponent, exact; zeros beyond nine decimals are dropped.

    Raises:
        NotJsonError: NaN, infinity, or more than 100 digits.
    """
    exponent = value.as_tuple().exponent
    if not isinstance(exponent, int) or abs(value.adjusted()) > 100 or abs(exponent) > 100:
        raise NotJsonError("a decimal that is not finite, or has more than 100 digits")
    text = format(value, "f")
    whole, point, digits = text.partition(".")
    return text if len(digits) <= _SCALE else whole + point + digits[:_SCALE] + digits[_SCALE:].rstrip("0")


def time_text(value: datetime) -> str:
    """Returns a time as RFC 3339 in UTC with ``Z``; a naive one is taken as UTC.

    Raises:
        NotJsonError: it leaves the years 1 to 9999 on the way to UTC.
    """
    try:
        naive = value if value.tzinfo is None else value.astimezone(UTC).replace(tzinfo=None)
    except OverflowError as error:
        raise NotJsonError("a time beyond the year 9999") from error
    return naive.isoformat() + "Z"


def _exact(value: Any) -> orjson.Fragment:
    if isinstance(value, ExactNumber):
        return orjson.Fragment(value.text.encode())
    raise TypeError(f"values of type {type(value).__name__} have no JSON form")


def _float(value: float) -> float:
    if not math.isfinite(value):
        raise NotJsonError("NaN or infinity")
    return value


def _bytes(value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return base64.b64encode(value).decode("ascii")


def _dict(value: Mapping[Any, Any]) -> dict[str, Any]:
    return {str(jsonable(k)): jsonable(v) for k, v in value.items() if v is not None}


def _list(value: Sequence[Any]) -> list[Any]:
    return [jsonable(v) for v in value]


_CONVERT: dict[type, Callable[[Any], Any]] = {
    float: _float,
    Decimal: decimal_text,
    datetime: time_text,
    date: date.isoformat,
    time: time.isoformat,
    timedelta: lambda value: value // _MICROSECOND,
    bytes: _bytes,
    UUID: str,
    dict: _dict,
    list: _list,
    tuple: _list,
}
