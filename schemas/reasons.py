"""What is wrong with a document, in our own words: the errors of both validation engines as ``Failure``.

Messages say what the schema expects and which type or which property names were found. They never hold a value of the
document. The two engines give equal failures for equal faults, so it does not matter which of them judged.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from headrace.schemas.failures import Failure
from headrace.schemas.references import escape

NAMES_SHOWN = 10
NAME_LENGTH = 100
PATTERN, FORMAT = "pattern:", "format:"
"""Prefixes of the formats that stand for a pattern or a format in a translated schema."""

_LIMITS = {
    "minimum": "expected a number of at least {}",
    "maximum": "expected a number of at most {}",
    "exclusiveMinimum": "expected a number above {}",
    "exclusiveMaximum": "expected a number below {}",
    "multipleOf": "expected a multiple of {}",
    "minLength": "expected at least {} characters",
    "maxLength": "expected at most {} characters",
    "minItems": "expected at least {} items",
    "maxItems": "expected at most {} items",
    "minProperties": "expected at least {} properties",
    "maxProperties": "expected at most {} properties",
    "minContains": "expected at least {} items as the schema's 'contains' describes",
    "maxContains": "expected at most {} items as the schema's 'contains' describes",
}
_PLAIN = {
    "anyOf": "matches none of the alternatives (anyOf)",
    "oneOf": "matches none, or more than one, of the alternatives (oneOf)",
    "not": "matches what the schema forbids (not)",
    "contains": "no item is as the schema's 'contains' describes",
    "uniqueItems": "expected items that differ from each other",
    "items": "expected no further items",
    "additionalItems": "expected no further items",
    "unevaluatedItems": "has items that no part of the schema allows",
    "unevaluatedProperties": "has properties that no part of the schema allows",
    "false_schema": "holds a value where the schema allows none",
}
_UPPER = re.compile(r"[A-Z]")


def from_fast(errors: Iterable[Any], document: Any) -> list[Failure]:
    """Returns the failures for the errors of jsonschema-rs on a schema made by ``translate``."""
    return _ordered(failure for error in errors for failure in _fast(error, document))


def from_reference(errors: Iterable[Any]) -> list[Failure]:
    """Returns the failures for the errors of jsonschema."""
    return _ordered(failure for error in errors for failure in _reference(error))


def unchecked(code: str, message: str) -> list[Failure]:
    """Returns the one failure of a document on which no verdict is possible."""
    return [Failure(code, "", message)]


def _fast(error: Any, document: Any) -> Iterator[Failure]:
    kind, path = error.kind, error.instance_path
    keyword = kind.name
    detail: Any = None
    if keyword == "format":
        name = kind.format
        keyword = "pattern" if name.startswith(PATTERN) else "format"
        detail = name.partition(":")[2]
    elif keyword == "type":
        detail = kind.types
    elif keyword == "required":
        detail = [kind.property]
    elif keyword == "additionalProperties":
        detail = kind.unexpected
    elif keyword == "enum":
        detail = kind.options
    elif keyword == "const":
        detail = kind.expected_value
    elif keyword in _LIMITS:
        detail = kind.limit
    found: Any = None
    if keyword == "type":
        found = document
        for part in path:
            found = found[part]
    yield from _failures(keyword, path, detail, found)


def _reference(error: Any) -> Iterator[Failure]:
    keyword = error.validator or "false_schema"
    detail, found = error.validator_value, error.instance
    if keyword == "required":
        detail = [name for name in detail if name not in found]
    elif keyword == "dependentRequired" or (keyword == "dependencies" and isinstance(found, dict)):
        keyword_detail = [
            need
            for name, needs in detail.items()
            if name in found
            for need in ([needs] if isinstance(needs, str) else needs)
            if isinstance(needs, str | list) and need not in found
        ]
        detail = keyword_detail
    elif keyword == "additionalProperties":
        named, patterns = error.schema.get("properties", {}), error.schema.get("patternProperties", {})
        detail = [
            name for name in found if name not in named and not any(re.search(p, name) for p in patterns)
        ]
    prefix = ""
    if "propertyNames" in error.absolute_schema_path and isinstance(found, str):
        prefix = "a property's name: "
    yield from _failures(keyword, error.absolute_path, detail, found, prefix)


def _failures(
    keyword: str, path: Iterable[str | int], detail: Any, found: Any, prefix: str = ""
) -> Iterator[Failure]:
    pointer = _clean("".join("/" + escape(str(part)) for part in path))
    code = _UPPER.sub(lambda match: "_" + match[0].lower(), keyword.lstrip("$"))
    if keyword in ("required", "dependentRequired", "dependencies"):
        for name in detail:
            yield Failure(code, pointer, f"{prefix}property {_name(name)} is missing")
    else:
        yield Failure(code, pointer, prefix + _message(keyword, detail, found))


def _message(keyword: str, detail: Any, found: Any) -> str:
    if keyword == "type":
        types = sorted([detail] if isinstance(detail, str) else detail)
        return f"expected {' or '.join(types)}, found {type_name(found)}"
    if keyword == "additionalProperties":
        return f"unexpected properties: {_listed(sorted(detail))}"
    if keyword == "enum":
        return f"expected one of {_listed(detail)}"
    if keyword == "const":
        return f"expected {_name(detail)}"
    if keyword == "format":
        return f"is not a valid {_clean(str(detail))}"
    if keyword == "pattern":
        return f"does not match the pattern {_clean(str(detail))}"
    if keyword in _LIMITS:
        return _LIMITS[keyword].format(json.dumps(detail))
    return _PLAIN.get(keyword, f"does not satisfy {keyword!r} of the schema")


def type_name(value: Any) -> str:
    """Returns the JSON type of a value: null, boolean, number, string, array or object."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, str):
        return "string"
    if isinstance(value, Mapping):
        return "object"
    return "array" if isinstance(value, Sequence) else "number"


def _listed(values: Sequence[Any]) -> str:
    shown = ", ".join(_name(value) for value in values[:NAMES_SHOWN])
    more = len(values) - NAMES_SHOWN
    return f"{shown} and {more} more" if more > 0 else shown


def _name(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return _clean(text if len(text) <= NAME_LENGTH else text[:NAME_LENGTH] + "…")


def _clean(text: str) -> str:
    """Returns the text with lone surrogates spelt out, so that it can be encoded as UTF-8."""
    return text.encode("utf-8", "backslashreplace").decode()


def _ordered(failures: Iterable[Failure]) -> list[Failure]:
    unique = {(item["pointer"], item["code"], item["message"]): item for item in failures}
    return [unique[key] for key in sorted(unique)]
