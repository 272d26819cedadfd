"""JSON text: one strict reading and one canonical writing, shared by every slow path and every JSON column."""

import json
import re
from dataclasses import dataclass
from typing import Any

import orjson

from headrace.schemas.failures import Failure

MAX_DEPTH = 250
"""Deepest nesting of arrays and objects that is accepted; more can't be written back by every JSON library."""

_DIGITS = bytes(48 if chr(c) in "0123456789." else 32 for c in range(256))
_LONG = b"0" * 16
_TOKEN = re.compile(rb'"(?:[^"\\]|\\.)*"|[\[\]{}]')


class MalformedJsonError(ValueError):
    """A text that is not one JSON document; ``failure`` says what and where."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure["message"])
        self.failure = failure


@dataclass(frozen=True, slots=True)
class ExactNumber:
    """A JSON number that neither int64 nor a double may hold exactly."""

    text: str


def parse(text: bytes) -> Any:
    """Parses one JSON document (RFC 8259): UTF-8, no BOM, no NaN; of duplicate keys the last one wins; big integers exact.

    Raises:
        MalformedJsonError: codes ``malformed_json`` and ``nesting_too_deep``.
    """
    if depth(text) > MAX_DEPTH:
        raise MalformedJsonError(
            Failure("nesting_too_deep", "", f"more than {MAX_DEPTH} levels of nesting; flatten the document")
        )
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise MalformedJsonError(_malformed(text, error)) from None
    return json.loads(text) if may_hold_long_number(text) else value


def parse_exact(text: bytes) -> Any:
    """Parses a well-formed text; a number that a double may not hold exactly stays its own text (:class:`ExactNumber`)."""
    if may_hold_long_number(text):
        return json.loads(text, parse_float=_fraction, parse_int=_integer)
    return orjson.loads(text)


def canonical(value: Any) -> str:
    """Writes JSON with sorted keys and without white space; a number keeps its value to the last digit.

    Args:
        value: JSON text as bytes (well formed), or a value from :func:`parse_exact`.
    """
    if isinstance(value, bytes):
        value = parse_exact(value)
    return orjson.dumps(
        value, default=_exact, option=orjson.OPT_SORT_KEYS | orjson.OPT_PASSTHROUGH_DATACLASS
    ).decode()


def may_hold_long_number(text: bytes) -> bool:
    """Tells whether 16 digits stand in a row somewhere: a double may not hold such a number exactly."""
    return _LONG in text.translate(_DIGITS)


def depth(text: bytes) -> int:
    """Returns an upper bound of the nesting, exact where it matters (above ``MAX_DEPTH``)."""
    bound = text.count(b"[") + text.count(b"{")
    if bound <= MAX_DEPTH:
        return bound
    level = deepest = 0
    for token in _TOKEN.finditer(text):
        first = token.group()[:1]
        if first in b"[{":
            level += 1
            deepest = max(deepest, level)
        elif first in b"]}":
            level -= 1
    return deepest


def pointer(parts: tuple[str | int, ...] | list[str | int]) -> str:
    """Returns a JSON pointer (RFC 6901)."""
    return "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in parts)


def _fraction(text: str) -> float | ExactNumber:
    return float(text) if len(text) <= 16 and abs(float(text)) != float("inf") else ExactNumber(text)


def _integer(text: str) -> int | ExactNumber:
    return int(text) if len(text) <= 18 else ExactNumber(text)


def _exact(value: object) -> orjson.Fragment:
    if isinstance(value, ExactNumber):
        return orjson.Fragment(value.text)
    raise TypeError


def _malformed(text: bytes, error: orjson.JSONDecodeError) -> Failure:
    reason = str(error.msg).split(":")[0]
    if text[:3] == b"\xef\xbb\xbf":
        reason = "byte order mark inside the input"
    elif b"\x00" in text:
        reason = "NUL byte"
    return Failure("malformed_json", "", f"not JSON at column {error.pos + 1}: {reason}")
