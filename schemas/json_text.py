"""JSON text: one strict reading and one canonical writing, shared by every slow path and every JSON column."""

import json
import re
from typing import Any

import msgspec
import orjson

from headrace.schemas.failures import Failure

MAX_DEPTH = 250
"""Deepest nesting of arrays and objects that is accepted; more can't be written back by every JSON library."""

_LONG_NUMBER = re.compile(rb"[0-9][0-9.]{15}|[0-9.][eE]")
"""What may be a number that a double does not hold exactly, or one in scientific notation."""
_TOKEN = re.compile(rb'"(?:[^"\\]|\\.)*"|[\[\]{}]')
_ENCODER = msgspec.json.Encoder(order="deterministic")


class MalformedJsonError(ValueError):
    """A text that is not one JSON document; ``failure`` says what and where."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure["message"])
        self.failure = failure


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
    return json.loads(text) if _LONG_NUMBER.search(text) else value


def parse_exact(text: bytes) -> Any:
    """Parses a well-formed text; a number that a double may not hold exactly stays its own text (``msgspec.Raw``)."""
    if _LONG_NUMBER.search(text):
        return json.loads(text, parse_float=_fraction, parse_int=_integer)
    return orjson.loads(text)


def canonical(value: Any) -> str:
    """Writes JSON with sorted keys and without white space; a number keeps its value to the last digit.

    Args:
        value: JSON text as bytes (well formed), or a value from :func:`parse_exact`.
    """
    text = value if isinstance(value, bytes) else _ENCODER.encode(value)
    if not _LONG_NUMBER.search(text):
        return orjson.dumps(orjson.loads(text), option=orjson.OPT_SORT_KEYS).decode()
    return _ENCODER.encode(_sorted(parse_exact(text))).decode()


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


def _fraction(text: str) -> float | msgspec.Raw:
    return float(text) if len(text) <= 16 and abs(float(text)) != float("inf") else msgspec.Raw(text.encode())


def _integer(text: str) -> int | msgspec.Raw:
    return int(text) if len(text) <= 18 else msgspec.Raw(text.encode())


def _sorted(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _sorted(value[key]) for key in sorted(value)}
    if isinstance(value, list):
        return [_sorted(item) for item in value]
    return value


def _malformed(text: bytes, error: orjson.JSONDecodeError) -> Failure:
    reason = str(error.msg).split(":")[0]
    if text[:3] == b"\xef\xbb\xbf":
        reason = "byte order mark inside the input"
    elif b"\x00" in text:
        reason = "NUL byte"
    return Failure("malformed_json", "", f"not JSON at column {error.pos + 1}: {reason}")
