"""Translates a JSON Schema for jsonschema-rs, if the verdicts are then those of jsonschema; else says that it can't.

jsonschema-rs is 10 times faster, but judges differently in places: its own regular expressions (``$`` and a trailing line
feed, ``\\d``, ``\\w``), its own formats, ``multipleOf`` and ``uniqueItems`` on floats, boolean ``items``, unevaluated keywords,
references. So a schema is translated only if each of its keywords is one on which both agree, and the patterns and formats
of a translated schema are run by Python functions: those of jsonschema itself.
"""

import math
import re
from collections.abc import Callable
from typing import Any

from headrace.schemas.reasons import FORMAT, PATTERN

Check = Callable[[str], bool]

_ANNOTATIONS = frozenset(
    [
        "$schema",
        "title",
        "description",
        "default",
        "examples",
        "$comment",
        "deprecated",
        "readOnly",
        "writeOnly",
        "contentMediaType",
        "contentEncoding",
        "contentSchema",
    ]
)
_COUNTS = frozenset(["minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties"])
_BOUNDS = frozenset(["minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"])
_LISTS = frozenset(["allOf", "anyOf", "oneOf"])
_MAPS = frozenset(["properties", "$defs", "definitions"])
_CONDITIONS = frozenset(["if", "then", "else"])
_EXACT = 2**53
_REFERENCE = re.compile(r"#(/(\$defs|definitions)/[A-Za-z0-9_.-]+)?")

_UUID = re.compile(r"[0-9a-fA-F]{8}-(?:[0-9a-fA-F]{4}-){3}[0-9a-fA-F]{12}")
_DATE_TIME = re.compile(
    r"[12][0-9]{3}-(?:0[1-9]|1[0-2])-(?:0[1-9]|1[0-9]|2[0-8])T(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9]"
    r"(?:\.[0-9]+)?(?:Z|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])"
)
_COMMON = {"uuid": _UUID, "date-time": _DATE_TIME}
"""What nearly all values look like: a match is certainly valid, so only the others are put to jsonschema's function."""


class Untranslatable(Exception):
    """The schema holds something on which the engines may differ."""


def translate(document: Any, draft: int, checker: Any) -> tuple[dict[str, Any], dict[str, Check]] | None:
    """Returns the schema for jsonschema-rs and its format functions; None if it must be left to jsonschema.

    Args:
        document: a schema that ``CheckedSchema`` has accepted.
        draft: 4, 6, 7, 2019 or 2020.
        checker: jsonschema's ``FormatChecker`` of that draft.
    """
    formats: dict[str, Check] = {}
    try:
        return _schema(document, draft, checker, formats, top=True), formats
    except Untranslatable:
        return None


def _schema(
    node: Any, draft: int, checker: Any, formats: dict[str, Check], top: bool = False
) -> dict[str, Any]:
    if node is True and draft > 4:
        return {}
    if not isinstance(node, dict):
        raise Untranslatable
    if "$ref" in node and draft < 2019 and set(node) - _ANNOTATIONS - {"$ref", "$defs", "definitions"}:
        raise Untranslatable
    made: dict[str, Any] = {}
    checks: list[str] = []
    for keyword, value in node.items():
        if keyword == "pattern":
            formats[PATTERN + value] = _pattern(value)
            checks.append(PATTERN + value)
        elif keyword == "format":
            if not isinstance(value, str):
                raise Untranslatable
            formats[FORMAT + value] = _format(value, checker)
            checks.append(FORMAT + value)
        elif keyword in _MAPS:
            made[keyword] = {name: _schema(child, draft, checker, formats) for name, child in value.items()}
        elif keyword in _LISTS:
            made[keyword] = [_schema(child, draft, checker, formats) for child in value]
        elif keyword in ("not", "items") or (keyword in _CONDITIONS and draft >= 7):
            made[keyword] = _schema(value, draft, checker, formats)
        elif keyword == "additionalProperties":
            if value is False and not node.get("properties"):  # reported otherwise
                raise Untranslatable
            made[keyword] = value if isinstance(value, bool) else _schema(value, draft, checker, formats)
        elif keyword in ("type", "required") or _agrees(keyword, value, draft):
            made[keyword] = value
        elif not (keyword in _ANNOTATIONS or keyword.startswith("x-") or (keyword == "$id" and top)):
            raise Untranslatable
    if checks:
        made["allOf"] = [*made.get("allOf", []), *({"format": name} for name in checks)]
    return made


def _agrees(keyword: str, value: Any, draft: int) -> bool:
    """Whether both engines judge this keyword with this value alike."""
    if keyword in _COUNTS:
        return isinstance(value, int) and value < 2**31
    if keyword in _BOUNDS:
        if isinstance(value, bool) or (draft == 4 and keyword.startswith("exclusive")):
            return False
        return math.isfinite(value) and abs(value) <= _EXACT
    if keyword == "enum":
        return all(option is None or isinstance(option, str | bool) for option in value)
    if keyword == "const":
        return draft > 4 and (value is None or isinstance(value, str | bool))
    return keyword == "$ref" and _REFERENCE.fullmatch(value) is not None


def _pattern(pattern: str) -> Check:
    search = re.compile(pattern).search
    return lambda text: search(text) is not None


def _format(name: str, checker: Any) -> Check:
    if name not in checker.checkers:
        return lambda text: True
    common = _COMMON.get(name)
    if common is None:
        return lambda text: bool(checker.conforms(text, name))
    match = common.fullmatch
    return lambda text: match(text) is not None or bool(checker.conforms(text, name))
